"""What a stage receives: its config, folder, inputs, ranks and tracker."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from configs.schema import Experiment, Stage

if TYPE_CHECKING:  # `tristage plan` and `tristage status` import this module, and must not import torch
    from data.examples import StageData
    from stages.distributed.ranks import Ranks

NAMES_SHOWN = 3


class Tracker(Protocol):
    """Where a stage reports. Every rank calls it; it acts only on rank 0."""

    def phase(self, title: str, total: int, done: int = 0) -> None:
        """Begin a progress display of `total` units, `done` of which are done."""

    def advance(self, units: int = 1, **metrics: float) -> None:
        """Advance the progress display, and show `metrics` beside it."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics of optimizer step (PPO: iteration) `step`. Steps never decrease."""

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Record prompts, responses and scores seen at `step`."""

    def note(self, message: str) -> None:
        """Write one line to the terminal and to the log."""

    def rewind(self, step: int) -> None:
        """Drop what was recorded after `step`, from which the stage resumes."""


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
    """Stands in for the pipeline's signals, and never receives one."""
    yield lambda: 0


@dataclass(frozen=True)
class Context:
    """One stage of one run.

    Attributes:
        folder: the stage's own folder, such as `RUN/sft`; it exists.
        inputs: verified adapter folder of each upstream stage, by stage name.
        resume: resume from the newest good checkpoint in `folder`, if there is one.
        ranks: the processes of the job, which have joined their process group.
        bases: identity of the base (see `base_digest`) that each upstream stage was trained on, by name.
        sources: digest of each local source when the stage was planned, by configuration key.
        run_id: shared by all attempts at this stage and by its checkpoints.
        signals_deferred: within it, SIGINT and SIGTERM do not end the process at once. It yields a function
            that returns the number of the signal that this rank received, or 0.
    """

    config: Experiment
    stage: Stage
    folder: Path
    inputs: Mapping[str, Path]
    tracker: Tracker
    resume: bool
    ranks: Ranks
    bases: Mapping[Stage, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    run_id: str = ""
    signals_deferred: Callable[[], AbstractContextManager[Callable[[], int]]] = no_signals

    @property
    def seed(self) -> int:
        """Seed of all noise in this stage. The split of prompts uses the experiment's seed instead."""
        own: int | None = getattr(self.config, self.stage).seed
        return self.config.seed if own is None else own

    def data(self, stage: Stage) -> StageData:
        """The data of `stage`, read under the digests of this stage's plan."""
        from data.examples import StageData, ranked_by_people  # imports transformers

        ranked = ranked_by_people(self.config, stage, self.folder.parent)
        return StageData(self.config, stage, self.tracker.note, self.sources, ranked=ranked)


@dataclass(frozen=True)
class Outcome:
    """What a stage returns for its manifest. Its output lies in `folder`.

    Attributes:
        metrics: the stage's own, and `steps`, `tokens_per_second` and `peak_memory_bytes`.
        base_digest: identity of the base that the adapter belongs to.
        chat: whether its prompts are conversations (see `is_chat`); that of the first one it trains on.
        compute_dtype: of the base's activations, such as `bfloat16`: `auto` depends on the machine.
    """

    metrics: dict[str, float]
    base_digest: str | None = None
    chat: bool | None = None
    compute_dtype: str | None = None


def not_finite(metrics: Mapping[str, float]) -> str:
    """The names of the metrics that are not finite, without their intervals; "" if all are."""
    names = [name for name, value in metrics.items() if not math.isfinite(value)]
    names = [name for name in names if not name.endswith(("_low", "_high", "_n"))] or names
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
