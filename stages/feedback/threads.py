"""Calls in several threads, which wait for a network. They never keep a process from ending."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(function: Callable[[Item], Result], items: Sequence[Item], threads: int) -> list[Result]:
    """The results of `function` in the order of `items`, computed in at most so many threads.

    The first failure is raised at once, as is a signal. Calls that have begun go on, and none begins after
    it. An executor of the standard library would first finish what it has queued.
    """
    waiting: SimpleQueue[tuple[int, Item]] = SimpleQueue()
    done: SimpleQueue[tuple[int, Result] | Exception] = SimpleQueue()
    over = threading.Event()
    for numbered in enumerate(items):
        waiting.put(numbered)

    def work() -> None:
        while not over.is_set():
            try:
                number, item = waiting.get_nowait()
            except Empty:
                return
            try:
                done.put((number, function(item)))
            except Exception as error:
                over.set()
                done.put(error)

    for _ in range(min(threads, len(items))):
        threading.Thread(target=work, daemon=True).start()
    results: dict[int, Result] = {}
    try:
        while len(results) < len(items):
            outcome = done.get()
            if isinstance(outcome, Exception):
                raise outcome
            results[outcome[0]] = outcome[1]
    finally:
        over.set()
    return [results[number] for number in range(len(items))]
