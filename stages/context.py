"""What a stage is handed: its config, its folder, its inputs, and a place to report to."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from configs.schema import Experiment, Stage

if TYPE_CHECKING:  # `tristage plan` and `tristage status` import this module, and must not import torch
    from stages.distributed.ranks import Ranks


class Tracker(Protocol):
    """Where a stage reports. Every rank calls it; it acts on rank 0 alone."""

    def phase(self, title: str, total: int, done: int = 0) -> None:
        """Begin a progress display of `total` units, `done` of which lie behind."""

    def advance(self, units: int = 1, **figures: float) -> None:
        """Move the progress display on, showing `figures` beside it."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics of optimizer step (PPO: iteration) `step`; steps only go forward."""

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Record prompts, responses and scores seen at `step`."""

    def note(self, message: str) -> None:
        """Say one line to the person at the terminal, and to the log."""

    def rewind(self, step: int) -> None:
        """Resume from `step`: forget what was recorded after it."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM ends the stage."""

    def __init__(self, signum: int, where: str = "") -> None:
        super().__init__(signal.Signals(signum).name + where)
        self.exit_code = 128 + signum


class Paused(Interrupted):
    """A signal ended training, on all ranks after the same step, which is in a checkpoint."""

    def __init__(self, signum: int, step: int, total: int) -> None:
        super().__init__(signum, f" after step {step} of {total}, which is in a checkpoint")


@contextmanager
def no_signals() -> Iterator[Callable[[], int]]:
    """For a stage that nobody can ask to end."""
    yield lambda: 0


@dataclass(frozen=True)
class Context:
    """One stage of one run.

    Attributes:
        folder: where the stage writes: `RUN/sft`, `RUN/rm` or `RUN/ppo`; it exists.
        inputs: final adapter folder of each stage upstream, by stage name, verified.
        resume: resume from the newest good checkpoint in `folder`, if there is one.
        ranks: the processes of the job, which have joined their process group.
        bases: what the base was (see `Roles.base_digest`) when a stage upstream was trained, by its name.
        run_id: what all attempts at this stage have in common, and its checkpoints state.
        signals_deferred: within it, SIGINT and SIGTERM do not end the process at once; it yields a function
            that tells the number of the one that came to this rank, 0 if none did.
    """

    config: Experiment
    stage: Stage
    folder: Path
    inputs: Mapping[str, Path]
    tracker: Tracker
    resume: bool
    ranks: Ranks
    bases: Mapping[Stage, str] = field(default_factory=dict)
    run_id: str = ""
    signals_deferred: Callable[[], AbstractContextManager[Callable[[], int]]] = no_signals

    @property
    def seed(self) -> int:
        """Of all noise in this stage; prompts are divided by the experiment's own seed, whatever this is."""
        own: int | None = getattr(self.config, self.stage).seed
        return self.config.seed if own is None else own


@dataclass(frozen=True)
class Outcome:
    """What a stage hands back: figures for its manifest. Its adapter lies in `folder/adapter`.

    `metrics` holds, beside the stage's own, `steps`, `tokens_per_second` and `peak_memory_bytes`;
    `base_digest` says which base the adapter belongs to (see `Roles.base_digest`).
    """

    metrics: dict[str, float]
    base_digest: str | None = None
