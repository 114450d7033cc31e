"""`launch/run_stage.py` on a machine where something dies.

python killed_stage.py WHEN --stage ... (the arguments of run_stage.py)

WHEN is a step: SIGKILL to all processes once it is logged and its checkpoint, if one is due, is not yet
written; `end`: the same after the last checkpoint, before there is an adapter; `raise` or `die`: rank 1 alone
ends after its first step, by an error or by SIGKILL.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])

from launch import run_stage  # noqa: E402
from pipeline.tracking import FileSink, NullReporter  # noqa: E402
from stages import rm, sft  # noqa: E402


def die(*_: Any) -> None:
    os.killpg(os.getpgid(0), signal.SIGKILL)


def die_after(last: int) -> None:
    """Let the file sink kill this process group when it has written the metrics of step `last`."""
    log = FileSink.log

    def log_and_die(self: FileSink, metrics: Mapping[str, Any], step: int) -> None:
        log(self, metrics, step)
        if step == last and "learning_rate" in metrics:
            die()

    FileSink.log = log_and_die  # type: ignore[method-assign]


def end_rank_1(how: str) -> None:
    """End rank 1, which reports to nobody, when its first step is done."""

    def advance(self: NullReporter, units: int = 1, **figures: float) -> None:
        if "learning_rate" in figures:
            if how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError("a fault of rank 1 alone")

    NullReporter.advance = advance  # type: ignore[method-assign]


if __name__ == "__main__":
    when = sys.argv.pop(1 if not sys.argv[1].startswith("--local_rank") else 2)
    if when == "end":
        sft.save_role = rm.write_role = die  # type: ignore[assignment]
    elif when.isdigit():
        die_after(int(when))
    else:
        end_rank_1(when)
    sys.exit(run_stage.main())
