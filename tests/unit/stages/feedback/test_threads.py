"""Calls in threads: in order, at most so many at a time, and none after a failure or a signal."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from stages.feedback.threads import map_in_threads


def test_results_are_in_order_and_so_many_run_at_a_time():
    running, most = [], []

    def square(number):
        running.append(number)
        most.append(len(running))
        time.sleep(0.01 * (number % 3))
        running.remove(number)
        return number**2

    assert map_in_threads(square, list(range(20)), 4) == [number**2 for number in range(20)]
    assert 1 < max(most) <= 4
    assert map_in_threads(square, [], 4) == []


def test_the_first_failure_is_raised_and_no_call_begins_after_it():
    begun = []

    def fail(number):
        begun.append(number)
        raise ValueError(str(number))

    with pytest.raises(ValueError, match="0"):
        map_in_threads(fail, list(range(1000)), 1)
    assert begun == [0]


def test_a_signal_ends_the_wait_at_once():
    over = threading.Event()

    def end(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR2, end)
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR2)).start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            map_in_threads(lambda _: over.wait(10), [1, 2, 3], 2)
        assert time.monotonic() - started < 5
    finally:
        over.set()
        signal.signal(signal.SIGUSR2, before)
