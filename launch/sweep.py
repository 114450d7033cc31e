"""`tristage sweep`: PPO over seeds and values of its options, all on one SFT policy and one reward model.

A single run of PPO proves little: another seed may show something else. Each run gets its own run directory
in `RUN/sweep`, whose `sft` and `rm` are links to those of `RUN`.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from configs.errors import UserError
from configs.schema import Experiment, Stage
from launch.deepspeed_command import Launch
from launch.stage_sequence import run_all
from launch.worker_pool import LOG, WorkerPool, not_writable
from pipeline.planning.plan import StagePlan
from pipeline.planning.request import Request
from pipeline.processes.signals import WATCHED, handled_by
from pipeline.processes.streams import say
from pipeline.state.run_directory import PLAIN_REMEDY

SHARED: tuple[Stage, ...] = ("sft", "rm")
Job = tuple[Request, Launch, Sequence[StagePlan]]
USER_ERROR = 2  # exit status
SECONDS_BETWEEN_POLLS = 0.2
DEFAULT_SEEDS, MOST_RUNS = 4, 500
LONGEST_NAME = 200  # of a run's folder; file systems take 255 bytes
SEED = "ppo.seed"
SEEDS = re.compile("[0-9]{1,10}")


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
        return re.sub("[^A-Za-z0-9._-]", "_", self.path.name)


def split_axes(overrides: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Overrides of all runs, and the values of each `ppo.key=a,b,c` as overrides.

    Raises:
        UserError: a key outside `ppo` has several values, one of them is empty, or a key is swept twice.
    """
    fixed: list[str] = []
    axes: list[list[str]] = []
    for override in overrides:
        key, _, text = override.partition("=")
        values = [value.strip() for value in text.split(",")]
        if len(values) == 1 or text.startswith(("[", "{", '"', "'")):
            fixed.append(override)
        elif not key.startswith("ppo."):
            raise UserError(
                f"{key}: a sweep shares SFT and reward model, so only keys of `ppo` can have several values. "
                "Give one value, or make a run directory for each."
            )
        elif not all(values) or any(axis[0].startswith(f"{key}=") for axis in axes):
            raise UserError(
                f"{key}: has an empty value, or several lists of values. Write {key}=VALUE,VALUE."
            )
        else:
            axes.append([f"{key}={value}" for value in values])
    return fixed, axes


def seeds_of(overrides: Sequence[str], number: int | None) -> tuple[list[str], list[int]]:
    """The seeds of a sweep, and the overrides without them: those of `ppo.seed=5,6`, else 0 to `number` - 1.

    Raises:
        UserError: `ppo.seed` is not a list of different seeds, or `number` is given as well.
    """
    given = [override.partition("=")[2] for override in overrides if override.partition("=")[0] == SEED]
    if not given:
        return list(overrides), list(range(DEFAULT_SEEDS if number is None else number))
    if number is not None or len(given) > 1:
        raise UserError("ppo.seed and --seeds: both name the seeds of the sweep. Give one of them, once.")
    seeds = [value.strip() for value in given[0].strip("[]").split(",")]
    if not all(SEEDS.fullmatch(seed) for seed in seeds) or len({int(seed) for seed in seeds}) < len(seeds):
        raise UserError(f"ppo.seed: {given[0]:.60} is not a list of different seeds. Write ppo.seed=5,6.")
    rest = [override for override in overrides if override.partition("=")[0] != SEED]
    return rest, [int(seed) for seed in seeds]


def runs_of(root: Path, axes: Sequence[Sequence[str]], seeds: Sequence[int]) -> list[Run]:
    """Every combination of values, with every seed.

    Raises:
        UserError: these are more than MOST_RUNS, or a run's name is too long.
    """
    settings = math.prod(map(len, axes))
    if settings * len(seeds) > MOST_RUNS:
        raise UserError(
            f"sweep: {settings} settings with {len(seeds)} seeds each are more than {MOST_RUNS} runs. "
            "Sweep fewer values or seeds."
        )
    longest = _folder([max(axis, key=len) for axis in axes], max(seeds))
    if len(longest) > LONGEST_NAME:
        raise UserError(
            f"sweep: {longest:.60}... is too long for the name of a run. Sweep fewer keys, or shorter values."
        )
    return [
        Run(
            (*combination, f"ppo.seed={seed}"),
            " ".join(_short(combination)) or "as configured",
            seed,
            root / "sweep" / _folder(combination, seed),
        )
        for combination in product(*axes)
        for seed in seeds
    ]


def check_different(runs: Sequence[Run], configs: Sequence[Experiment]) -> None:
    """Check that no two runs are one, or have one folder.

    Raises:
        UserError: two have equal values, as those of `ppo.kl_coef=0.05,5e-2`; or one name, as those of
            `ppo.from=a/b,a_b`.
    """
    known: dict[str, Run] = {}
    named: dict[str, Run] = {}
    for run, config in zip(runs, configs, strict=True):
        same = known.setdefault(config.ppo.model_dump_json(), run)
        if same is not run:
            raise UserError(
                f"sweep: the runs {same.path.name} and {run.path.name} have equal values. "
                "Give each value once."
            )
        other = named.setdefault(run.name, run)
        if other is not run:
            raise UserError(
                f"sweep: {other.setting} and {run.setting} would have one folder: {run.path.name}. "
                "Write one value in another way, e.g. a path with ./ before it."
            )


def _folder(overrides: Sequence[str], seed: int) -> str:
    """The name of a run's folder. A value may be a path, and a name holds no slash."""
    settings = [setting.replace("/", "_") for setting in _short(overrides)]
    return "-".join([*settings, f"seed={seed}"])


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
                say(f"sweep: run {number} of {len(runs)}: {run.setting}, seed {run.seed}")
                link_shared(root[0].run.path, run.path)
                pool.start(run.path, command)
            time.sleep(SECONDS_BETWEEN_POLLS)
            for folder, code in pool.poll():
                by_signal = [signum for signum in WATCHED if code == 128 + signum]
                if not (interrupted and by_signal):
                    say(f"sweep: {pool.end_message(folder, code)}", error=bool(code))
                if not interrupted:
                    status = code or status
                    noted += by_signal
                if code == USER_ERROR:
                    waiting.clear()
            if noted and not interrupted:
                status, interrupted = 128 + noted[0], True
                say("sweep: interrupted; every run ends after its current step", error=True)
            while noted:
                noted.popleft()
                waiting.clear()
                pool.interrupt()
    return status


def link_shared(root: Path, path: Path) -> None:
    """Link a run's `sft` and `rm` to those of the root, if it has them. Relative links survive a move of it.

    Raises:
        UserError: `path` cannot be written, or is a link.
    """
    for folder in (path.parent, path, path / LOG):
        if folder.is_symlink():
            raise UserError(f"{folder} is a link. {PLAIN_REMEDY}")
    try:
        path.mkdir(parents=True, exist_ok=True)
        for stage in SHARED:
            link = path / stage
            if (root / stage).exists() and not link.is_symlink() and not link.exists():
                link.symlink_to(os.path.relpath(root / stage, path))
    except OSError as error:
        raise not_writable(path, error) from error
