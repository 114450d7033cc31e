"""`launch/run_stage.py`, whose processes die or receive a signal at a given step.

python killed_stage.py WHEN --stage ... (the arguments of run_stage.py)

WHEN is one of
- STEP: SIGKILL to all processes after STEP is logged and before its checkpoint, if one is due, is written.
- `end`: the same after the last checkpoint, before the adapter is written.
- `raise`, `die` or `hang`: only rank 1 raises an error, receives SIGKILL or hangs, after its second step.
- `hang@0`: rank 0 hangs after its second step.
- `late`: rank 1 hangs before it joins the others.
- `SIGINT@STEP`, `SIGTERM@STEP`: that signal to all processes after STEP is logged.
- `SIGTERM@STEP@rank`: the same to rank 0 only.
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


def kill_all(*_: Any) -> None:
    os.killpg(os.getpgid(0), signal.SIGKILL)


def send(signum: signal.Signals, rank: bool) -> None:
    if rank:
        os.kill(os.getpid(), signum)
    else:
        os.killpg(os.getpgid(0), signum)


def after(last: int, action: Callable[[], None]) -> None:
    """Call `action` on rank 0 after its file sink has written the metrics of step `last`."""
    log = FileSink.log

    def log_and_act(self: FileSink, metrics: Mapping[str, Any], step: int) -> None:
        log(self, metrics, step)
        if step == last and "learning_rate" in metrics:
            action()

    FileSink.log = log_and_act  # type: ignore[method-assign]


def end_rank_1(failure: str) -> None:
    """End rank 1 after its second step, when its first is in a checkpoint. Rank 1 has a `NullReporter`."""
    steps = count(1)

    def advance(self: NullReporter, units: int = 1, **figures: float) -> None:
        if "learning_rate" in figures and next(steps) == 2:
            if failure == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if failure == "hang":
                time.sleep(600)
            raise ZeroDivisionError("a fault of rank 1 alone")

    NullReporter.advance = advance  # type: ignore[method-assign]


if __name__ == "__main__":
    when = sys.argv.pop(1 if not sys.argv[1].startswith("--local_rank") else 2)
    if when == "end":
        sft.save_role = rm.write_members = kill_all  # type: ignore[assignment]
    elif when.isdigit():
        after(int(when), kill_all)
    elif when == "hang@0":
        after(2, partial(time.sleep, 600))
    elif when == "late":
        time.sleep(600 if os.environ["RANK"] == "1" else 0)
    elif "@" in when:
        name, step, *rank = when.split("@")
        after(int(step), partial(send, signal.Signals[name], bool(rank)))
    else:
        end_rank_1(when)
    sys.exit(run_stage.main())
