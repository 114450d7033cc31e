"""Stages that are killed several times, resumed each time, and compared with stages without kills."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.schema import ALL_STAGES, STAGES, UPSTREAM, Stage
from data.storage.sealed_folder import seal_fault
from pipeline.state.manifest import read_manifest
from pipeline.state.run_directory import RunDirectory
from tests.chaos.attempt import STAGE, Attempt, Kill, Target
from tests.support.runs import copy_upstream, files, launcher, metrics, rows, stage_arguments

CASES: list[tuple[Stage, int]] = [(stage, ranks) for ranks in (2, 1) for stage in STAGES]
TARGETS: tuple[Target, ...] = ("launcher", "rank", "all")
MOST_KILLS = 3  # in one life
BY_THE_CLOCK = 0.4  # share of the kills; of the others, every second strikes during a checkpoint
SECONDS_TO_UNLOCK = 10.0
# Dropout is on so that the random numbers of training matter; W&B, because it has its own process. The reward
# model collects its rankings.
COLLECTION = ["rm.rankings.labeller=warmth", "rm.rankings.rollout={max_new_tokens: 12}"]
BEST = ["best.n=2", "best.rollout={max_new_tokens: 12}"]
OPTIONS = ["adapter.dropout=0.1", "tracking.wandb=offline", "ppo.judge=warmth", *COLLECTION, *BEST]
RECORDS = (
    *("metrics.jsonl", "samples.jsonl", "evaluation.jsonl", "rankings.jsonl"),
    *("curve.jsonl", "demonstrations/train.jsonl"),
)


@dataclass
class Life:
    """A stage from its first launch to its end, with its kills and faults."""

    stage: Stage
    ranks: int
    kills: list[Kill] = field(default_factory=list)
    finished: bool = False
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Undisturbed:
    """A stage without kills: its run, its duration, and the moments of its rank 0 in order."""

    run: Path
    seconds: float
    moments: list[str]


Draw = Callable[[Undisturbed, int], Kill]


class Campaign:
    """Lives of `cases`, pairs of stage and ranks, in `folder`. `seed` decides what is killed when."""

    def __init__(self, folder: Path, seed: int, cases: Sequence[tuple[Stage, int]] = CASES) -> None:
        self.folder, self.chance, self.cases = folder, random.Random(seed), cases
        self._undisturbed: dict[tuple[Stage, int], Undisturbed] = {}
        self._attempts = 0

    def lives(self, kills: int) -> Iterator[Life]:
        """A life of each case in turn, until `kills` kills have struck."""
        struck, number = 0, 0
        while struck < kills:
            stage, ranks = self.cases[number % len(self.cases)]
            number += 1
            most = min(kills - struck, self.chance.randint(1, MOST_KILLS))
            life = self.live(stage, ranks, self.folder / f"life-{number}", most, self._draw)
            struck += len(life.kills)
            yield life

    def undisturbed(self, stage: Stage, ranks: int) -> Undisturbed:
        """The stage without kills. The stage and its upstream stages run once."""
        for upstream in (*UPSTREAM[stage], stage):
            if (upstream, ranks) not in self._undisturbed:
                run = self.folder / f"undisturbed-{ranks}"
                run.mkdir(exist_ok=True)
                attempt = self._launch(upstream, run, ranks)
                assert attempt.end() == 0, attempt.output.read_text()
                assert not attempt.orphans() and not attempt.temporary_files()
                moments = list(dict.fromkeys(attempt.trace.read_text().splitlines()))
                self._undisturbed[upstream, ranks] = Undisturbed(run, attempt.seconds, moments)
        return self._undisturbed[stage, ranks]

    def live(self, stage: Stage, ranks: int, run: Path, kills: int, draw: Draw) -> Life:
        """A life in `run` with at most so many `kills`, which `draw` chooses after a position."""
        reference, life = self.undisturbed(stage, ranks), Life(stage, ranks)
        copy_upstream(reference.run, stage, run)
        checks, position, hold = Watch(run, stage), 0, True
        for _ in range(kills):
            kill = draw(reference, position)
            attempt = self._launch(stage, run, ranks, kill.moment)
            hold = attempt.strike(kill, self.chance)
            if not hold:
                break
            life.kills.append(kill)
            life.faults += checks.after_a_kill(attempt)
            if kill.moment:
                position = reference.moments.index(kill.moment) + 1
        if hold:
            attempt = self._launch(stage, run, ranks)
        status = attempt.end()
        life.finished = status == 0
        if status:
            life.faults.append(f"ended with status {status}: {attempt.output.read_text()[-2000:]}")
        else:
            life.faults += [
                *checks.after_a_kill(attempt),
                *checks.at_the_end(),
                *differences(run / stage, reference.run / stage),
            ]
        return life

    def _draw(self, reference: Undisturbed, position: int) -> Kill:
        """Choose a kill: by the clock, or at a moment from `position` on, after all earlier kills."""
        target, remaining = self.chance.choice(TARGETS), reference.moments[position:]
        if not remaining or self.chance.random() < BY_THE_CLOCK:
            return Kill(target, seconds=self.chance.uniform(0, reference.seconds))
        in_checkpoint = [moment for moment in remaining if Kill(target, moment=moment).kind == "checkpoint"]
        return Kill(
            target,
            moment=self.chance.choice(
                in_checkpoint if in_checkpoint and self.chance.random() < 0.5 else remaining
            ),
        )

    def _launch(self, stage: Stage, run: Path, ranks: int, hold: str = "") -> Attempt:
        command = [*launcher(ranks), str(STAGE), *stage_arguments(stage, run, *OPTIONS)]
        return self.attempt(command, run, stage, hold)

    def attempt(self, command: Sequence[str], run: Path, stage: str, hold: str = "") -> Attempt:
        self._attempts += 1
        return Attempt(command, run, stage, self.folder / f"attempt-{self._attempts}", hold)


class Watch:
    """What must hold of a stage's folder after each attempt and at the end."""

    def __init__(self, run: Path, stage: Stage) -> None:
        self.run, self.stage, self.folder = RunDirectory(run), stage, run / stage
        self._run_id: str | None = None

    def after_a_kill(self, attempt: Attempt) -> list[str]:
        faults = [f"orphan process: {command_line}" for command_line in attempt.orphans()]
        faults += [f"temporary file: {name}" for name in attempt.temporary_files()]
        if self._stays_locked():
            faults.append("the stage is locked, but no process runs it")
        manifest = read_manifest(self.run.manifest(self.stage))
        if manifest is not None:
            if self._run_id not in (None, manifest.run_id):
                faults.append(f"W&B id: {self._run_id} became {manifest.run_id}")
            self._run_id = manifest.run_id
        return faults

    def _stays_locked(self) -> bool:
        """Whether the lock stays after the process has ended. The system may need seconds to release it."""
        deadline = time.monotonic() + SECONDS_TO_UNLOCK
        while (locked := self.run.is_locked(self.stage)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return locked

    def at_the_end(self) -> list[str]:
        known = (f".{stage}.lock" for stage in ALL_STAGES)
        hidden = {path.relative_to(self.run.path).as_posix() for path in self.run.path.rglob(".*")}
        faults = [
            f"left over: {name}"
            for name in sorted(hidden - {*known, ".config.lock"})
            if "/wandb/" not in name
        ]
        faults += [f"set aside: {path.name}" for path in self.run.path.glob("*.old-*")]
        trained = [self.folder / "adapter"] if self.stage in STAGES else []
        for folder in (*trained, *(self.folder / "checkpoints").glob("*")):
            if fault := seal_fault(folder):
                faults.append(f"{folder.name}: {fault}")
        runs = {path.name.rpartition("-")[2] for path in (self.folder / "wandb").glob("offline-run-*")}
        return faults + ([] if runs == {self._run_id} else [f"W&B runs {runs}, not {self._run_id} alone"])


def differences(actual: Path, expected: Path) -> list[str]:
    """What is not bit-identical in two folders of a stage, without timings."""
    logged = [(row["step"], *sorted(row)) for row in lines_of(actual / "metrics.jsonl")]
    faults = [f"step {row[0]} is logged {times} times" for row, times in Counter(logged).items() if times > 1]
    for name in RECORDS:
        if lines_of(actual / name) != lines_of(expected / name):
            faults.append(f"{name} differs")
    if files(actual / "adapter") != files(expected / "adapter"):
        faults.append("the adapter differs")
    if metrics(actual / "manifest.json") != metrics(expected / "manifest.json"):
        faults.append("the manifest's metrics differ")
    status = json.loads((actual / "manifest.json").read_text())["status"]
    return faults + ([] if status == "finished" else [f"the manifest says {status}"])


def lines_of(file: Path) -> list[dict[str, Any]]:
    return rows(file) if file.exists() else []
