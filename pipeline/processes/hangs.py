"""Which rank hangs, and at which line."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from pipeline.state.manifest import Process

STACK_SIGNAL = signal.SIGUSR1  # a rank then writes its stack, see `logs.open_logs`
SECONDS_TO_ANSWER = 1.0
FRAME = re.compile(r'File "(.+)", line (\d+) in (.+)')  # of a stack whose most recent call comes first
# States in which a process answers nobody.
SILENT = {
    psutil.STATUS_STOPPED: "stopped (SIGSTOP; `kill -CONT PID` continues it)",
    psutil.STATUS_TRACING_STOP: "stopped by a debugger",
    psutil.STATUS_DISK_SLEEP: "waiting for a disk or a device",
}
COLLECTIVE_PATHS = ("/torch/distributed/", "/deepspeed/comm/")  # a rank in there waits for the others, too


def timed_out(message: str) -> bool:
    """Whether an error message reports the timeout of a collective; gloo has several phrases for it."""
    return all(
        re.search(part, message, re.IGNORECASE) for part in ("gloo|nccl|collective", "timed out|timeout")
    )


def where_hung(peers: Mapping[int, Process], logs: Path) -> Iterator[tuple[int, str]]:
    """Rank and place, or state, of each of `peers` on this machine that is in no collective."""
    here = {rank: process for rank, process in peers.items() if process.host == socket.gethostname()}
    before = {rank: len(_stack(logs, rank)) for rank in here}  # a person may have asked, too
    for process in here.values():
        with suppress(ProcessLookupError):
            os.kill(process.pid, STACK_SIGNAL)
    time.sleep(SECONDS_TO_ANSWER)
    for rank, process in here.items():
        frames = FRAME.findall(_stack(logs, rank)[before[rank] :])
        if frames and not any(part in file for file, *_ in frames for part in COLLECTIVE_PATHS):
            file, line, function = frames[0]
            yield rank, f"{file}:{line}, in {function}"
        elif not frames and (state := _state(process)) in SILENT:
            yield rank, f"an unknown place: {process} is {SILENT[state]}"


def crash_of(logs: Path, rank: int) -> str | None:
    """How a rank crashed, with its place, such as a segmentation fault; None if it did not."""
    _, crashed, rest = _stack(logs, rank).partition("Fatal Python error: ")
    if not crashed:
        return None
    fault, frames = rest.split("\n")[0], FRAME.findall(rest)
    return f"{fault} at {frames[0][0]}:{frames[0][1]}, in {frames[0][2]}" if frames else fault


def place_of_main_thread() -> str | None:
    """The code line that the main thread of this rank is at; None if it is in a collective."""
    frames = traceback.extract_stack(sys._current_frames()[threading.main_thread().ident or 0])
    if any(part in frame.filename for frame in frames for part in COLLECTIVE_PATHS):
        return None
    return f"{frames[-1].filename}:{frames[-1].lineno}, in {frames[-1].name}"


def _stack(logs: Path, rank: int) -> str:
    """The stack that a rank wrote at STACK_SIGNAL."""
    stack = logs / f"rank{rank}.stack"
    return stack.read_text(errors="replace") if stack.exists() else ""


def _state(process: Process) -> str:
    try:
        state: str = psutil.Process(process.pid).status()
    except psutil.NoSuchProcess:
        return "gone"
    return state


def where_raised(error: BaseException) -> str:
    """The code line that a signal interrupted by raising `error`."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "signals.py" not in frame.filename
    ]
    return (
        f"{frames[-1].filename}:{frames[-1].lineno}, in {frames[-1].name}" if frames else "an unknown place"
    )
