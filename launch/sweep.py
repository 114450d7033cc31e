"""`tristage sweep`: PPO over seeds and values of its options, all on one SFT policy and one reward model.

A single run of PPO proves little: another seed may show something else. Each run gets its own run directory
in `RUN/sweep`, whose `sft` and `rm` are links to those of `RUN`.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from configs.errors import UserError
from configs.schema import Stage
from launch.deepspeed_command import Launch
from launch.stage_sequence import run_all
from launch.worker_pool import WorkerPool, not_writable
from pipeline.planning.plan import StagePlan
from pipeline.planning.request import Request
from pipeline.processes.signals import WATCHED, handled_by

SHARED: tuple[Stage, ...] = ("sft", "rm")
Job = tuple[Request, Launch, Sequence[StagePlan]]
USER_ERROR = 2  # exit status
SECONDS_BETWEEN_POLLS = 0.2


@dataclass(frozen=True)
class Run:
    """One run of a sweep: its overrides, the setting that its seeds share, and its run directory."""

    overrides: tuple[str, ...]
    setting: str
    seed: int
    path: Path

    @property
    def name(self) -> str:
        """The folder's name in a form that an experiment may have."""
        return self.path.name.replace("=", "_")


def split_axes(overrides: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Overrides of all runs, and the values of each `ppo.key=a,b,c` as overrides.

    Raises:
        UserError: a key outside `ppo` has several values.
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
            " ".join(_short(combination)) or "as configured",
            seed,
            root / "sweep" / "-".join([*_short(combination), f"seed={seed}"]),
        )
        for combination in product(*axes)
        for seed in range(seeds)
    ]


def _short(overrides: Sequence[str]) -> list[str]:
    """Overrides without the `ppo.` that they all have."""
    return [override.removeprefix("ppo.") for override in overrides]


def run_sweep(root: Job, runs: Sequence[tuple[Run, Sequence[str]]], pool: WorkerPool) -> int:
    """Train the shared stages and best-of-n in `root`, then PPO in each run; skip what is finished.

    A run that fails does not end the others. After one that the user must fix (status 2), no other starts.

    Args:
        root: the request, launch and plans of the shared stages.
        runs: each with the command that trains it.
        pool: runs the commands.

    Returns:
        0, or the exit status of a shared stage, or of the last run that failed. 128 + a signal's number if
        that signal, sent to the sweep or to one of its runs, stopped them all.

    Raises:
        UserError: a run's directory cannot be written.
    """
    status = run_all(*root)
    if status:
        return status
    waiting, noted, interrupted = deque(enumerate(runs, 1)), deque[int](), False
    with handled_by(lambda signum, _frame: noted.append(signum)), pool:
        while waiting or pool.busy:
            while waiting and pool.free:
                number, (run, command) = waiting.popleft()
                print(f"sweep: run {number} of {len(runs)}: {run.setting}, seed {run.seed}", flush=True)
                link_shared(root[0].run.path, run.path)
                pool.start(run.path, command)
            time.sleep(SECONDS_BETWEEN_POLLS)
            for folder, code in pool.poll():
                by_signal = [signum for signum in WATCHED if code == 128 + signum]
                if not (interrupted and by_signal):
                    print(
                        f"sweep: {pool.end_message(folder, code)}",
                        file=sys.stderr if code else None,
                        flush=True,
                    )
                if not interrupted:
                    status = code or status
                    noted += by_signal
                if code == USER_ERROR:
                    waiting.clear()
            if noted and not interrupted:
                status, interrupted = 128 + noted[0], True
                print(
                    "sweep: interrupted; every run ends after its current step", file=sys.stderr, flush=True
                )
            while noted:
                noted.popleft()
                waiting.clear()
                pool.interrupt()
    return status


def link_shared(root: Path, path: Path) -> None:
    """Link a run's `sft` and `rm` to those of the root. Relative links survive a move of the root.

    Raises:
        UserError: `path` cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        for stage in SHARED:
            link = path / stage
            if not link.is_symlink() and not link.exists():
                link.symlink_to(os.path.relpath(root / stage, path))
    except OSError as error:
        raise not_writable(path, error) from error
