"""python -m tests.chaos.long [--iterations 2000]: a long PPO run of the tiny experiment, and what grows.

The exit status is 1 if the process's memory, open files or threads, or the number of checkpoints,
are larger in the last tenth of the run than in the second.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import psutil

from tests.support.runs import RUN_STAGE, environment, rows, run_stage, stage_arguments

TENTHS = 10
MEMORY_NOISE = 1.05  # share by which the memory of a steady process may seem to grow
OPTIONS = ("ppo.judge=null", "ppo.eval_steps=null", "ppo.save_steps=20", "ppo.keep_checkpoints=3")


@dataclass(frozen=True)
class Use:
    """The maximum that a process used in a tenth of its run."""

    iterations: int
    mebibytes: float
    open_files: int
    threads: int
    checkpoints: int

    def most(self, other: Use) -> Use:
        return Use(*map(max, astuple(self), astuple(other)))


def measure(process: psutil.Process, folder: Path, iterations: int) -> Use:
    with process.oneshot():
        memory, threads = process.memory_info().rss / 2**20, process.num_threads()
    return Use(
        iterations, memory, process.num_fds(), threads, len(list((folder / "checkpoints").glob("step-*")))
    )


def watch(run: Path, iterations: int) -> tuple[list[Use], int]:
    """Train and measure; returns the uses by tenths of the run, and the exit status."""
    command = [
        sys.executable,
        RUN_STAGE,
        *stage_arguments("ppo", run, f"ppo.iterations={iterations}", *OPTIONS),
    ]
    uses: dict[int, Use] = {}
    with (run / "output").open("w") as output:
        launched = subprocess.Popen(
            list(map(str, command)), env=environment(), stdout=output, stderr=subprocess.STDOUT
        )
    process, metrics = psutil.Process(launched.pid), run / "ppo" / "metrics.jsonl"
    while launched.poll() is None:
        time.sleep(0.5)
        iteration = rows(metrics)[-1]["step"] if metrics.exists() and metrics.stat().st_size else 0
        try:
            use = measure(process, run / "ppo", iteration)
        except psutil.Error:
            break
        tenth = iteration * TENTHS // (iterations + 1)
        uses[tenth] = use.most(uses.get(tenth, use))
    return [uses[tenth] for tenth in sorted(uses)], launched.wait()


def growth(uses: list[Use]) -> list[str]:
    """What is larger in the last tenth than in the second. The first tenth has one-time allocations."""
    early, late = uses[1], uses[-1]
    grown = [
        name
        for name in ("open_files", "threads", "checkpoints")
        if getattr(late, name) > getattr(early, name)
    ]
    return grown + (["mebibytes"] if late.mebibytes > early.mebibytes * MEMORY_NOISE else [])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.long", description=__doc__)
    parser.add_argument("--iterations", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="long-") as folder:
        run = Path(folder)
        for stage in ("sft", "rm"):
            run_stage(stage, run)
        uses, status = watch(run, arguments.iterations)
        if status:
            print((run / "output").read_text())
            return status
        logs = sum(file.stat().st_size for file in (run / "ppo" / "logs").iterdir())
    names = [field.name.replace("_", " ") for field in fields(Use)]
    print(f"| {' | '.join(names)} |\n{'|---' * len(names)}|")
    for use in uses:
        print(f"| {' | '.join(f'{value:.0f}' for value in astuple(use))} |")
    grown = growth(uses)
    print(f"logs: {logs / 1024:.0f} KiB; {'grown: ' + ', '.join(grown) if grown else 'nothing grew'}")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
