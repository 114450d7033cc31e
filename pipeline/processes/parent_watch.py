"""A rank does not outlive its launcher, nor the `tristage` that started the launcher, however these end.

A process that is killed with SIGKILL sends no signal. Its ranks would train on unseen, and hold the stage's
lock.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import psutil

STARTER = "TRISTAGE_STARTED_BY"  # variable with the process id and start time of the nearest `tristage`
DEEPSPEED = "deepspeed.launcher.launch"  # what the command `deepspeed` starts on each machine
SECONDS_BETWEEN_POLLS = 1.0
# An interrupted rank may be in a long operation, and then still has to write its manifest.
SECONDS_TO_STOP = 90.0


def follow_launcher() -> None:
    """Interrupt this process once its launcher or its `tristage` is gone. Call before the slow imports."""
    launcher, starter = _launcher(), os.environ.get(STARTER)
    if "LOCAL_RANK" in os.environ:
        _follow(lambda: _launcher() == launcher and not _lost(launcher) and _lives(starter))
    else:
        follow_starter()


def follow_starter() -> None:
    """Interrupt this process once the `tristage` that started it, such as a sweep, is gone."""
    if starter := os.environ.get(STARTER):
        _follow(lambda: _lives(starter))


def mark_of_this_process() -> dict[str, str]:
    """The variable by which processes that this one starts follow it."""
    return {STARTER: f"{os.getpid()} {psutil.Process().create_time()}"}


def _follow(followed_lives: Callable[[], bool]) -> None:
    threading.Thread(target=_end_with, args=(followed_lives,), daemon=True).start()


def _end_with(followed_lives: Callable[[], bool]) -> None:
    while followed_lives():
        time.sleep(SECONDS_BETWEEN_POLLS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS_TO_STOP)
    os.kill(os.getpid(), signal.SIGKILL)


def _lives(starter: str | None) -> bool:
    """Whether the process of a mark still runs. On another machine there is no mark."""
    if starter is None:
        return True
    pid, created = starter.split()
    try:
        process = psutil.Process(int(pid))
        return process.create_time() == float(created) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _launcher() -> tuple[int, ...]:
    """The launcher's processes above this one. If one dies, another process becomes the parent."""
    try:
        parent = psutil.Process(os.getppid())
        return (parent.pid, parent.ppid()) if DEEPSPEED in parent.cmdline() else (parent.pid,)
    except psutil.NoSuchProcess:
        return ()


def _lost(launcher: tuple[int, ...]) -> bool:
    """Whether the command `deepspeed` ended before its ranks began: init is the parent instead."""
    return launcher[1:] == (1,) and "deepspeed" not in " ".join(psutil.Process(1).cmdline())
