"""`tristage sweep`: PPO over seeds and values of its options, all on one SFT policy and one reward model.

Single runs of PPO prove little: what one seed shows, another may not. Each run gets a run directory of its
own in `RUN/sweep`, whose `sft` and `rm` are links to those of `RUN`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from configs.errors import UserError
from configs.schema import Stage
from pipeline.orchestrate import Launch, run_all
from pipeline.plan import Request
from pipeline.signals import WATCHED, handled_by

SHARED: tuple[Stage, ...] = ("sft", "rm")
Job = tuple[Request, Launch]
SECONDS_BETWEEN_LOOKS = 0.2
LOG = "run.log"  # in the directory of a run that trains beside others


@dataclass(frozen=True)
class Run:
    """One run of a sweep: its overrides, the setting that its seeds have in common, and where it is."""

    overrides: tuple[str, ...]
    setting: str
    seed: int
    path: Path

    @property
    def name(self) -> str:
        """Its folder's name as an experiment may be called."""
        return self.path.name.replace("=", "_")


def split_axes(overrides: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Overrides that hold for all runs, and for each `ppo.key=a,b,c` its values as overrides.

    Raises:
        UserError: a key of another stage than PPO has several values.
    """
    fixed, axes = [], []
    for override in overrides:
        key, _, text = override.partition("=")
        values = text.split(",")
        if len(values) == 1 or text.startswith(("[", "{", '"', "'")):
            fixed.append(override)
        elif not key.startswith("ppo."):
            raise UserError(
                f"{key}: a sweep shares SFT and reward model, so only keys of `ppo` can have several values. "
                "Give one value, or make a run directory for each."
            )
        else:
            axes.append([f"{key}={value}" for value in values])
    return fixed, axes


def runs_of(root: Path, axes: Sequence[Sequence[str]], seeds: int) -> list[Run]:
    """Every combination of values, with seeds 0, 1, ..."""
    return [
        Run(
            (*combination, f"ppo.seed={seed}"),
            " ".join(each.removeprefix("ppo.") for each in combination) or "as configured",
            seed,
            root / "sweep" / "-".join([*(each.removeprefix("ppo.") for each in combination), f"seed={seed}"]),
        )
        for combination in product(*axes)
        for seed in range(seeds)
    ]


def sweep(root: Job, runs: Sequence[tuple[Run, Sequence[str]]], crew: Crew) -> int:
    """Train the shared stages in `root`, best-of-n beside them, and PPO in each run; skip what is finished.

    Args:
        root: the run directory of the shared stages, and how they are started.
        runs: each with the command that trains it.
        crew: trains them.

    Returns:
        0, or the exit status of a shared stage, or of the last run that failed; after that the others go on.
        128 and a signal's number where that, sent to the sweep or to a run, ended it: every run is stopped.
    """
    status = run_all(*root, [*SHARED, "best"])
    if status:
        return status
    waiting, noted, interrupted = deque(enumerate(runs, 1)), deque[int](), False
    with handled_by(lambda signum, _frame: noted.append(signum)):
        while waiting or crew.busy:
            while waiting and crew.free:
                number, (run, command) = waiting.popleft()
                print(
                    f"sweep: run {number} of {len(runs)}: {run.setting}, seed {run.seed}; in {run.path}",
                    flush=True,
                )
                link_shared(root[0].run.path, run.path)
                crew.start(run, command)
            time.sleep(SECONDS_BETWEEN_LOOKS)
            for run, failed in crew.ended():
                if failed and not interrupted:
                    print(f"sweep: {run.path} ended with status {failed}", file=sys.stderr, flush=True)
                    status = failed
                    noted += [signum for signum in WATCHED if failed == 128 + signum]
            while noted:
                status, interrupted = 128 + noted[0], True
                waiting.clear()
                crew.tell(noted.popleft())
    return status


class Crew:
    """Commands that run at a time, each on its share of the devices.

    Args:
        jobs: how many at a time. Of more than one, each writes what it says to LOG.
        devices: names for CUDA_VISIBLE_DEVICES, dealt to the jobs; none on a machine with CPUs alone.
    """

    def __init__(self, jobs: int = 1, devices: Sequence[str] = ()) -> None:
        self.jobs, self.devices = jobs, devices
        self.free = list(range(jobs))
        self.busy: dict[int, tuple[Run, subprocess.Popen[bytes]]] = {}

    def start(self, run: Run, command: Sequence[str]) -> None:
        """Start the command of a run in the first place that is free."""
        place = self.free.pop(0)
        environment = os.environ | self._share(place)
        with ExitStack() as stack:
            log = stack.enter_context((run.path / LOG).open("ab")) if self.jobs > 1 else None
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self.busy[place] = run, process

    def ended(self) -> Iterator[tuple[Run, int]]:
        """Runs that have ended since the last look, with their exit status."""
        for place, (run, process) in list(self.busy.items()):
            code = process.poll()
            if code is not None:
                del self.busy[place]
                self.free.append(place)
                yield run, 128 - code if code < 0 else code

    def tell(self, signum: int) -> None:
        """Send a signal to every command that still runs."""
        for _, process in self.busy.values():
            process.send_signal(signum)

    def _share(self, place: int) -> dict[str, str]:
        if not self.devices:
            return {}
        each = max(1, len(self.devices) // self.jobs)
        begin = place * each % len(self.devices)
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.devices[begin : begin + each])}


def link_shared(root: Path, path: Path) -> None:
    """Let a run's `sft` and `rm` be those of the root, however the root is moved."""
    path.mkdir(parents=True, exist_ok=True)
    for stage in SHARED:
        link = path / stage
        if not link.is_symlink() and not link.exists():
            link.symlink_to(os.path.relpath(root / stage, path))


def found_runs(root: Path) -> Iterator[Path]:
    """Run directories of the sweep in `root` whose PPO has at least begun."""
    yield from sorted(manifest.parent.parent for manifest in (root / "sweep").glob("*/ppo/manifest.json"))
