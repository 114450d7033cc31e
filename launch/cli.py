"""The console script `tristage`. It imports nothing that takes time before it handles signals."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType


def main() -> int:
    """Returns the exit status; see `launch.commands`."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _end)
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before a `data.py` on PYTHONPATH
    from launch import commands  # imports the libraries

    return commands.main()


def _end(signum: int, _frame: FrameType | None) -> None:
    """The handler around the commands. No file is open yet, and an import could swallow an exception."""
    try:
        os.write(2, f"interrupted by {signal.Signals(signum).name}; the same command resumes\n".encode())
    finally:
        os._exit(128 + signum)


if __name__ == "__main__":
    sys.exit(main())
