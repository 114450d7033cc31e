"""`tristage sweep`: PPO over seeds and values of its options, all on one SFT policy and one reward model.

Single runs of PPO prove little: what one seed shows, another may not. Each run gets a run directory of its
own in `RUN/sweep`, whose `sft` and `rm` are links to those of `RUN`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from configs.errors import UserError
from configs.schema import Stage
from pipeline.orchestrate import Launch, run_all
from pipeline.plan import Request

SHARED: tuple[Stage, ...] = ("sft", "rm")
INTERRUPTED = (130, 143)
Job = tuple[Request, Launch]


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


def sweep(root: Job, runs: Sequence[tuple[Run, Job]]) -> int:
    """Train the shared stages in `root`, best-of-n beside them, and PPO in each run; skip what is finished.

    Returns:
        0, or the exit status of a shared stage, or of the last run that failed; after that the others go on.
    """
    status = run_all(*root, [*SHARED, "best"])
    if status:
        return status
    for number, (run, job) in enumerate(runs, 1):
        print(f"sweep: run {number} of {len(runs)}: {run.setting}, seed {run.seed}", flush=True)
        link_shared(root[0].run.path, run.path)
        failed = run_all(*job, ["ppo"])
        if failed in INTERRUPTED:
            return failed
        if failed:
            print(
                f"sweep: {run.path} ended with status {failed}; the others go on", file=sys.stderr, flush=True
            )
        status = failed or status
    return status


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
