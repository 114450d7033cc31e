"""A reward function that ends its process as the variable ENDING says, on the ranks of ENDING_RANKS."""

from __future__ import annotations

import ctypes
import os
import posix
import sys
import threading
from collections.abc import Callable, Sequence


def in_a_thread() -> None:
    thread = threading.Thread(target=os._exit, args=(0,))
    thread.start()
    thread.join()


def fork_and_return() -> None:
    if child := os.fork():
        os.waitpid(child, 0)


WAYS: dict[str, Callable[[], object]] = {
    "sys.exit": lambda: sys.exit(0),
    "os._exit": lambda: os._exit(0),
    "posix._exit": lambda: posix._exit(0),
    "thread": in_a_thread,
    "segmentation fault": lambda: ctypes.string_at(0),
    "exit of C": lambda: ctypes.CDLL(None)._exit(0),
    "fork": fork_and_return,
}


def score(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """End the process; but not if only two answers are asked about, as before a stage."""
    if len(prompts) > 2 and os.environ.get("RANK", "0") in os.environ["ENDING_RANKS"]:
        WAYS[os.environ["ENDING"]]()
    return [float(len(text)) for text in completions]
