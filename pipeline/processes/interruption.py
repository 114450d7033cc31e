"""Ctrl-C outside of a stage's work: one line in place of a traceback. It imports little, to be early."""

from __future__ import annotations

import os
import signal
from types import FrameType

from pipeline.processes.streams import say


def end_imports_in_one_line() -> None:
    """From now on, SIGINT ends this rank; rank 0 says so. A launcher's SIGTERM keeps its silent effect."""
    signal.signal(signal.SIGINT, end_in_one_line)


def end_in_one_line(signum: int, _frame: FrameType | None) -> None:
    """The handler: raises SystemExit, so that locks are released. A launcher repeats the signal."""
    for repeated in (signal.SIGINT, signal.SIGTERM):
        signal.signal(repeated, signal.SIG_IGN)
    if os.environ.get("RANK", "0") == "0":
        say(f"interrupted by {signal.Signals(signum).name}; the same command resumes", error=True)
    raise SystemExit(128 + signum)
