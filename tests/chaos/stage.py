"""`launch/run_stage.py`, whose rank 0 can be held before each file operation and in each phase.

A moment is one file that is opened, made, renamed or removed in the run directory. Its name is the operation
and the file: `rename sft/checkpoints/.step-000002.partial`. These moments come from Python's audit events, so
that the tested code needs no hooks. A moment is also a phase of the stage after its first unit of work, by
its title at the terminal, as in `in rm: normalizing, time 1`, and W&B's end. From the environment:

CHAOS_RUN, CHAOS_STAGE: the run directory, and the stage in it whose moments count. If it is `report`, this
    program is `tristage` in place of a stage, and the moments are those of the report that it writes.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])

REPORT, WANDB_END = "report", "W&B's end"
EVENTS = {
    "os.mkdir": "make",
    "os.rename": "rename",
    "os.remove": "remove",
    "os.rmdir": "remove",
    "shutil.rmtree": "remove",
}
RANDOM = re.compile(r"\.\w{8}\.partial$")  # names of temporary files
SECONDS_HELD = 120.0  # if no process is left to kill this one


def moment(event: str, arguments: tuple[Any, ...], run: str, stage: str) -> str | None:
    """The name of an audit event's moment, or None."""
    if event not in EVENTS and event != "open":
        return None
    path = arguments[0]
    if not isinstance(path, str) or not path.startswith(run + os.sep):
        return None
    name = RANDOM.sub(".*.partial", os.path.relpath(path, run))
    own, elsewhere = (f"{stage}/", f".{REPORT}"), (f"{stage}/logs", f"{stage}/wandb")
    if not name.startswith((*own, "config.yaml", ".config.yaml")) or name.startswith(elsewhere):
        return None
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    return f"{EVENTS.get(event, 'write' if writes else 'read')} {name}"


def watch(run: str, stage: str, trace: Path, hold: str, held: Path) -> Callable[[str], None]:
    """From now on, append the moments of this process to `trace`, and wait at `hold`.

    Returns a function to call at a moment that is no file operation.
    """
    waiting = bool(hold)
    times: Counter[str] = Counter()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if name := moment(event, arguments, run, stage):
            reach(name)

    def reach(name: str) -> None:
        nonlocal waiting
        times[name] += 1
        if ".*." in name or name.startswith("in "):  # it comes several times, such as the manifest's
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
    return reach


def watch_phases(reach: Callable[[str], None]) -> None:
    """Call `reach` in each phase that a Reporter shows, after its first unit, and before W&B's run ends."""
    from pipeline.tracking.reporter import Reporter
    from pipeline.tracking.wandb_sink import WandbSink

    phase, advance, close = Reporter.phase, Reporter.advance, WandbSink.close
    begun: list[str] = []

    def begin(self: Reporter, title: str, total: int, done: int = 0) -> None:
        begun.append(title)
        phase(self, title, total, done)

    def go_on(self: Reporter, units: int = 1, **figures: float) -> None:
        advance(self, units, **figures)
        while begun:
            reach(f"in {begun.pop()}")

    def end(self: WandbSink, exit_code: int) -> None:
        reach(WANDB_END)
        close(self, exit_code)

    Reporter.phase, Reporter.advance = begin, go_on  # type: ignore[method-assign]
    WandbSink.close = end  # type: ignore[method-assign]


def main() -> int:
    run, stage, trace, hold, held = (
        os.environ[f"CHAOS_{name}"] for name in ("RUN", "STAGE", "TRACE", "HOLD", "HELD")
    )
    if stage == REPORT:
        from launch import cli as program
    else:
        from launch import run_stage as program  # type: ignore[no-redef]
    if os.environ.get("RANK", "0") == "0":
        watch_phases(watch(run, stage, Path(trace), hold, Path(held)))
    return program.main()


if __name__ == "__main__":
    sys.exit(main())
