"""Which rank hangs, and at which line."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from pipeline.state.manifest import Process

STACK_SIGNAL = signal.SIGUSR1  # a rank then writes its stack, see `logs.open_logs`
SECONDS_TO_ANSWER = 1.0
FRAME = re.compile(r'File "(.+)", line (\d+) in (.+)')  # of a stack whose most recent call comes first
COLLECTIVE_PATHS = ("/torch/distributed/", "/deepspeed/comm/")  # a rank in there waits for the others, too


def timed_out(message: str) -> bool:
    """Whether an error message reports the timeout of a collective; gloo has several phrases for it."""
    return all(
        re.search(part, message, re.IGNORECASE) for part in ("gloo|nccl|collective", "timed out|timeout")
    )


def where_hung(peers: Mapping[int, Process], logs: Path) -> Iterator[tuple[int, str]]:
    """Rank and code line of each of `peers` on this machine that is in no collective."""
    here = {rank: process for rank, process in peers.items() if process.host == socket.gethostname()}
    for process in here.values():
        with suppress(ProcessLookupError):
            os.kill(process.pid, STACK_SIGNAL)
    time.sleep(SECONDS_TO_ANSWER)
    for rank in here:
        stack = logs / f"rank{rank}.stack"
        frames = FRAME.findall(stack.read_text(errors="replace")) if stack.exists() else []
        if frames and not any(part in file for file, *_ in frames for part in COLLECTIVE_PATHS):
            file, line, function = frames[0]
            yield rank, f"{file}:{line}, in {function}"


def where_raised(error: BaseException) -> str:
    """The code line that a signal interrupted by raising `error`."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "signals.py" not in frame.filename
    ]
    return (
        f"{frames[-1].filename}:{frames[-1].lineno}, in {frames[-1].name}" if frames else "an unknown place"
    )
