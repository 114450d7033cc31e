"""A rank does not outlive its launcher, however the launcher ends.

A launcher that is killed with SIGKILL sends no signal. Its ranks would train on unseen, and hold the stage's
lock.
"""

from __future__ import annotations

import os
import signal
import threading
import time

import psutil

DEEPSPEED = "deepspeed.launcher.launch"  # what the command `deepspeed` starts on each machine
SECONDS_BETWEEN_POLLS = 1.0
# An interrupted rank may be in a long operation, and then still has to write its manifest.
SECONDS_TO_STOP = 90.0


def follow_launcher() -> None:
    """Under a launcher, interrupt this process once the launcher is gone. Call before the slow imports."""
    if "LOCAL_RANK" in os.environ:
        threading.Thread(target=_follow, args=(_launcher(),), daemon=True).start()


def _follow(launcher: tuple[int, ...]) -> None:
    while _launcher() == launcher and not _lost(launcher):
        time.sleep(SECONDS_BETWEEN_POLLS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS_TO_STOP)
    os.kill(os.getpid(), signal.SIGKILL)


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
