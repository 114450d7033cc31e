"""`launch/run_stage.py` on a machine where something dies, or is told to end.

python killed_stage.py WHEN --stage ... (the arguments of run_stage.py)

WHEN is a step: SIGKILL to all processes once it is logged and its checkpoint, if one is due, is not yet
written; `end`: the same after the last checkpoint, before there is an adapter; `raise`, `die` or `hang`: rank
1 alone ends after its second step, by an error or by SIGKILL, or does not go on; `SIGINT@STEP`,
`SIGTERM@STEP`: that signal to all processes once STEP is logged; `SIGTERM@STEP@rank`: to rank 0 alone.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])

from launch import run_stage  # noqa: E402
from pipeline.tracking.metric_files import FileSink  # noqa: E402
from pipeline.tracking.reporter import NullReporter  # noqa: E402
from stages import rm, sft  # noqa: E402


def die(*_: Any) -> None:
    os.killpg(os.getpgid(0), signal.SIGKILL)


def send(signum: signal.Signals, rank: bool) -> None:
    if rank:
        os.kill(os.getpid(), signum)
    else:
        os.killpg(os.getpgid(0), signum)


def after(last: int, do: Callable[[], None]) -> None:
    """Let the file sink of rank 0 do something when it has written the metrics of step `last`."""
    log = FileSink.log

    def log_and_do(self: FileSink, metrics: Mapping[str, Any], step: int) -> None:
        log(self, metrics, step)
        if step == last and "learning_rate" in metrics:
            do()

    FileSink.log = log_and_do  # type: ignore[method-assign]


def end_rank_1(how: str) -> None:
    """End rank 1, which reports to nobody, when its second step is done and its first is in a checkpoint."""
    steps = count(1)

    def advance(self: NullReporter, units: int = 1, **figures: float) -> None:
        if "learning_rate" in figures and next(steps) == 2:
            if how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "hang":
                time.sleep(600)
            raise ZeroDivisionError("a fault of rank 1 alone")

    NullReporter.advance = advance  # type: ignore[method-assign]


if __name__ == "__main__":
    when = sys.argv.pop(1 if not sys.argv[1].startswith("--local_rank") else 2)
    if when == "end":
        sft.save_role = rm.write_role = die  # type: ignore[assignment]
    elif when.isdigit():
        after(int(when), die)
    elif "@" in when:
        name, step, *rank = when.split("@")
        after(int(step), partial(send, signal.Signals[name], bool(rank)))
    else:
        end_rank_1(when)
    sys.exit(run_stage.main())
