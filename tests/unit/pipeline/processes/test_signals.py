"""Signals to this process: deferred or handled, and distinguished from the launcher's copies."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from pipeline.processes import signals as module
from pipeline.processes.signals import Signals, watched_signals
from stages.context import Interrupted, Paused


@pytest.fixture
def signals() -> Iterator[Signals]:
    with watched_signals() as watched:
        watched.announce = True
        yield watched


def send(*signums: signal.Signals) -> None:
    for signum in signums:
        os.kill(os.getpid(), signum)


def test_a_deferred_signal_is_noted_and_ends_the_process_afterwards(
    signals: Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Interrupted) as ended, signals.deferred() as noted:
        assert noted() == 0
        send(signal.SIGTERM)
        time.sleep(0.2)
        assert noted() == signal.SIGTERM
        assert capfd.readouterr().err.startswith("interrupted: ends after the current step")
    assert ended.value.exit_code == 143


def test_the_launchers_copy_is_no_second_signal(signals: Signals) -> None:
    with pytest.raises(Interrupted) as ended, signals.deferred() as noted:
        send(signal.SIGINT, signal.SIGTERM, signal.SIGINT)
        time.sleep(0.1)
        assert noted() == signal.SIGINT, "the first counts"
    assert ended.value.exit_code == 130


def test_a_copy_that_the_main_thread_learns_of_late_is_none_either(
    signals: Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS_TO_REPEAT", 0.3)
    copy = threading.Timer(0.05, send, [signal.SIGTERM])
    with pytest.raises(Interrupted), signals.deferred() as noted:
        send(signal.SIGTERM)
        copy.start()
        started = time.monotonic()
        while time.monotonic() < started + 0.6:
            hashlib.pbkdf2_hmac("sha256", b"a long operation, deaf", b"to signals", 1_500_000)
        assert noted() == signal.SIGTERM


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_process_at_once(
    signals: Signals, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals
) -> None:
    monkeypatch.setattr(module, "SECONDS_TO_REPEAT", 0.05)
    with pytest.raises(Interrupted) as ended, signals.deferred():
        send(signum)
        time.sleep(0.2)
        send(signum)
        time.sleep(10)
        pytest.fail("not reached")
    assert ended.value.exit_code == 128 + signum
    send(signum)  # a third one is ignored
    time.sleep(0.1)


def test_nothing_disturbs_a_stage_that_has_paused(signals: Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_TO_REPEAT", 0.0)
    with pytest.raises(Paused, match="SIGTERM after step 7 of 20"), signals.deferred():
        raise Paused(signal.SIGTERM, 7, 20)  # another rank got the signal
    send(signal.SIGTERM, signal.SIGINT)
    time.sleep(0.1)


def test_an_error_is_not_hidden_by_a_signal_that_came_before_it(signals: Signals) -> None:
    with pytest.raises(ZeroDivisionError), signals.deferred():
        send(signal.SIGTERM)
        raise ZeroDivisionError


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(signum) for signum in module.WATCHED]
    threads = threading.active_count()
    with watched_signals():
        assert threading.active_count() == threads + 1
    assert [signal.getsignal(signum) for signum in module.WATCHED] == before
    assert threading.active_count() == threads
