"""`launch/run_stage.py`, whose rank 0 can be held before each file operation.

A moment is one file that is opened, made, renamed or removed in the run directory. Its name is the operation
and the file: `rename sft/checkpoints/.step-000002.partial`. Moments come from Python's audit events, so
that the tested code needs no hooks. From the environment:

CHAOS_RUN, CHAOS_STAGE: the run directory, and the stage in it whose moments count.
CHAOS_TRACE: a file that gets a line for each moment.
CHAOS_HOLD: the moment to wait at. When it first comes, the process makes the file CHAOS_HELD and waits until
    that file is removed.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast

sys.path[0] = str(Path(__file__).resolve().parents[2])

from configs.schema import STAGES, Stage  # noqa: E402
from launch import run_stage  # noqa: E402

EVENTS = {
    "os.mkdir": "make",
    "os.rename": "rename",
    "os.remove": "remove",
    "os.rmdir": "remove",
    "shutil.rmtree": "remove",
}
RANDOM = re.compile(r"\.\w{8}\.partial$")  # names of temporary files
SECONDS_HELD = 120.0  # if no process is left to kill this one
ELSEWHERE = {stage: (f"{stage}/logs", f"{stage}/wandb") for stage in STAGES}


def moment(event: str, arguments: tuple[Any, ...], run: str, stage: Stage) -> str | None:
    """The name of an audit event's moment, or None."""
    if event not in EVENTS and event != "open":
        return None
    path = arguments[0]
    if not isinstance(path, str) or not path.startswith(run + os.sep):
        return None
    name = RANDOM.sub(".*.partial", os.path.relpath(path, run))
    if not name.startswith((f"{stage}/", "config.yaml", ".config.yaml")) or name.startswith(ELSEWHERE[stage]):
        return None
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    return f"{EVENTS.get(event, 'write' if writes else 'read')} {name}"


def watch(run: str, stage: Stage, trace: Path, hold: str, held: Path) -> None:
    """From now on, append the moments of this process to `trace`, and wait at `hold`."""
    waiting = bool(hold)
    times: Counter[str] = Counter()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal waiting
        name = moment(event, arguments, run, stage)
        if name is None:
            return
        times[name] += 1
        if ".*." in name:  # a file that is written several times, such as the manifest
            name += f", time {times[name]}"
        with trace.open("a") as stream:
            stream.write(name + "\n")
        if waiting and name == hold:
            waiting = False
            held.touch()
            deadline = time.monotonic() + SECONDS_HELD
            while held.exists() and time.monotonic() < deadline:
                time.sleep(0.01)

    sys.addaudithook(hook)


if __name__ == "__main__":
    if os.environ["RANK"] == "0":
        run, stage, trace, hold, held = (
            os.environ[f"CHAOS_{name}"] for name in ("RUN", "STAGE", "TRACE", "HOLD", "HELD")
        )
        watch(run, cast(Stage, stage), Path(trace), hold, Path(held))
    sys.exit(run_stage.main())
