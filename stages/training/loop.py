"""The loop that SFT, RM and PPO share: take steps, log, evaluate, save, and stop at a signal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from configs.errors import UserError
from configs.schema import Epochs, Training
from data.batches.sampler import Lengths, global_batch
from data.storage.records import records
from stages.context import Context, Paused
from stages.training.checkpoint import (
    Checkpoint,
    Header,
    State,
    Stateful,
    checkpoint_folder,
    read_checkpoint,
    save_checkpoint,
)
from stages.training.engine import Engine
from stages.training.resume import ENGINE, seed_step
from stages.training.soundness import check_start
from stages.training.throughput import Meter

LOOP = "loop"  # its part of a checkpoint
Metrics = Mapping[str, float]
TakeStep = Callable[[int, list[int]], Metrics]
Evaluate = Callable[[], Metrics]


class StopTraining(Exception):
    """A step raises it to end training without an update: the reason, and the metrics that show it."""

    def __init__(self, reason: str, metrics: Metrics) -> None:
        super().__init__(reason)
        self.metrics = metrics


@dataclass
class Best:
    """The best evaluation so far, of a step that has a checkpoint."""

    step: int
    metrics: dict[str, float]


@dataclass
class Progress:
    """What the loop remembers across a restart.

    Attributes:
        step: steps done.
        before: the evaluation before the first step; empty if nothing is held out.
        after: the newest evaluation.
        best: the evaluation with the lowest held-out loss; in PPO, with the highest score.
        stopped: why a step ended training; None if none did.
        skipping_since: first step of the current row of skipped updates.
    """

    step: int = 0
    before: dict[str, float] | None = None
    after: dict[str, float] | None = None
    best: Best | None = None
    stopped: str | None = None
    skipping_since: int | None = None


class TrainingLoop:
    """Takes a stage's optimizer steps (PPO: iterations), and keeps it resumable."""

    def __init__(
        self,
        context: Context,
        training: Training,
        engine: Engine,
        meter: Meter,
        total: int,
        parts: Mapping[str, Stateful] | None = None,
    ) -> None:
        """Prepare `total` steps from the start.

        Args:
            meter: counts the tokens that steps train on.
            parts: what else goes into checkpoints, by name; the loop and the engine always do.
        """
        self.context, self.training, self.engine, self.meter = context, training, engine, meter
        self.total = total
        self.progress = Progress()
        self._parts: dict[str, Stateful] = {ENGINE: engine, LOOP: self, **(parts or {})}

    def resume(self, checkpoint: Checkpoint | None) -> None:
        """Restore the loop and its parts from `checkpoint`; the engine has its state from `start_engine`."""
        if checkpoint is None:
            return
        for name, part in self._parts.items():
            if name != ENGINE:
                part.load_state_dict(checkpoint.part(name))
        best = self.progress.best
        if best and not checkpoint_folder(checkpoint.folder.parent, best.step).is_dir():
            self.progress.best = None  # a later best had replaced it, and is damaged now

    def state_dict(self) -> State:
        return State(asdict(self.progress))

    def load_state_dict(self, state: State) -> None:
        best = state.values["best"]
        self.progress = Progress(**state.values | {"best": Best(**best) if best else None})

    def run(
        self, size: int, take_step: TakeStep, evaluate: Evaluate, lengths: Lengths | None = None
    ) -> tuple[Metrics, Metrics]:
        """Take the steps that are left, logging, evaluating and saving on the way. Every rank must call.

        Args:
            size: training examples, from which each step's batch is drawn.
            take_step: does step number `step` (from 0) on the examples at the given indices, and returns
                its metrics.
            evaluate: metrics on held-out data, empty if nothing is held out. Logged as `eval/...` before the
                first step, every `eval_steps`, and after the last step.
            lengths: of each example, if batches are to have examples of about the same length.

        Returns:
            The evaluation before the first step and the one after the last; without steps, the same twice.

        Raises:
            UserError: too many updates in a row had a gradient that is not finite, the evaluation before
                the first step is not finite, or nothing is held out to choose the best checkpoint by.
            Paused: SIGINT or SIGTERM arrived. The current step was finished and saved.
        """
        progress, tracker = self.progress, self.context.tracker
        if progress.before is None:
            progress.before = self._evaluate(evaluate)
        check_start(self.context.stage, progress.before)
        self._check_best_can_be_chosen(progress.before)
        if not self.total:  # max_steps: 0
            return progress.before, progress.before
        with self.context.signals_deferred() as received_signal:
            tracker.phase(f"{self.context.stage}: training", self.total, progress.step)
            while progress.step < self.total and progress.stopped is None:
                try:
                    metrics = self._step(size, take_step, lengths)
                except StopTraining as stop:
                    self._stop(stop, evaluate)
                    break
                evaluated = self._log(metrics, evaluate)
                signum = self.engine.ranks.max(received_signal())  # all ranks leave after the same step
                if signum or self._is_last or progress.step % self.training.save_steps == 0:
                    if evaluated:
                        self._compare_with_best()
                    self.save()
                if signum:
                    raise Paused(signum, progress.step, self.total)
        return progress.before, progress.after or {}

    @property
    def _is_last(self) -> bool:
        return self.progress.step == self.total

    def _check_best_can_be_chosen(self, evaluation: Metrics) -> None:
        stage = self.context.stage
        if isinstance(self.training, Epochs) and self.training.use_best and not evaluation:
            raise UserError(
                f"{stage}.use_best: nothing is held out to choose by. Set data.{stage}.held_out, or use_best "
                "to false."
            )

    def _step(self, size: int, take_step: TakeStep, lengths: Lengths | None) -> dict[str, float]:
        """Take the next step, and report if its update was skipped."""
        context, progress, counters = self.context, self.progress, self.engine.counters
        seed_step(context.seed, context.stage, progress.step, self.engine.ranks.rank)
        picks = global_batch(size, self.training.batch_size, context.seed, progress.step, lengths)
        skipped = counters.skipped
        metrics = dict(take_step(progress.step, picks))
        progress.step += 1
        if counters.skipped > skipped:
            if counters.skipped_in_row <= counters.skipped - skipped:
                progress.skipping_since = progress.step
            self._report_skipped_update(picks, metrics)
        return metrics | {
            "tokens_per_second": self.meter.tokens_per_second,
            "skipped_updates": counters.skipped,
        }

    def _report_skipped_update(self, picks: Sequence[int], metrics: Metrics) -> None:
        """Note the batch of a skipped update; raise UserError after too many in a row."""
        context, progress, counters = self.context, self.progress, self.engine.counters
        not_finite = ", ".join(name for name, value in metrics.items() if not math.isfinite(value))
        context.tracker.note(
            f"step {progress.step}: an update was skipped, its gradient is not finite (batch: examples "
            f"{picks}; not finite: {not_finite})"
        )
        if counters.skipped_in_row >= self.training.max_skipped_updates:
            raise UserError(
                f"{counters.skipped_in_row} updates in a row, up to step {progress.step}, the first at step "
                f"{progress.skipping_since}, had no finite gradient ({context.stage}.max_skipped_updates). "
                f"Not finite in the last: {not_finite}. Look at the examples that the log names; checkpoints "
                f"are in {context.folder / 'checkpoints'}. If a reward is the cause, correct it, and the "
                f"same command resumes. Otherwise lower {context.stage}.learning_rate and start over with "
                "--fresh."
            )

    def _log(self, metrics: Metrics, evaluate: Evaluate) -> bool:
        """Log the step, and evaluate if it is due; returns whether it was."""
        tracker, step = self.context.tracker, self.progress.step
        if self._is_last or step % self.training.logging_steps == 0:
            tracker.log(metrics, step)
        tracker.advance(1, **metrics)
        due = self.training.eval_steps is not None and step % self.training.eval_steps == 0
        if due or self._is_last:
            self.progress.after = self._evaluate(evaluate)
        return due or self._is_last

    def _evaluate(self, evaluate: Evaluate) -> dict[str, float]:
        metrics = dict(evaluate())
        if metrics:
            named = {f"eval/{name}": value for name, value in metrics.items()}
            self.context.tracker.log(named, self.progress.step)
        return metrics

    def _stop(self, stop: StopTraining, evaluate: Evaluate) -> None:
        """End training in its own step, so that no step has two evaluations or two checkpoints."""
        progress, tracker = self.progress, self.context.tracker
        tracker.note(f"training ends after {progress.step} of {self.total} steps: {stop}")
        progress.step += 1
        progress.stopped = str(stop)
        tracker.log(stop.metrics, progress.step)
        progress.after = self._evaluate(evaluate)
        self.save()

    def _compare_with_best(self) -> None:
        """Remember the step if its evaluation is the best so far."""
        metrics, best = self.progress.after, self.progress.best
        if not metrics or not math.isfinite(_quality(metrics)):
            return
        if best is None or _quality(metrics) > _quality(best.metrics):
            self.progress.best = Best(self.progress.step, metrics)

    def save(self) -> None:
        """Write a checkpoint of the engine, the loop and the other parts. Every rank must call."""
        states = {name: part.state_dict() for name, part in self._parts.items()}
        if self.engine.ranks.rank == 0:
            folder, best = self.context.folder, self.progress.best
            base = self.engine.models.base_digest
            save_checkpoint(
                folder / "checkpoints",
                Header(self.progress.step, self.context.run_id, base, records(folder)),
                states,
                self.training.keep_checkpoints,
                best.step if best else None,
            )
        self.engine.ranks.barrier()

    def load_best(self) -> Metrics:
        """Give the roles the parameters of the best checkpoint, after training; returns its evaluation.

        Raises:
            UserError: no evaluation was a finite number, or the checkpoint is no longer good.
        """
        context, best = self.context, self.progress.best
        if best is None:
            raise UserError(
                f"{context.stage}.use_best: no held-out loss was a finite number. Look at the metrics."
            )
        folder = checkpoint_folder(context.folder / "checkpoints", best.step)
        checkpoint = read_checkpoint(folder, context.run_id)
        if isinstance(checkpoint, str):
            raise UserError(
                f"the best checkpoint, of step {best.step}, cannot be used: {checkpoint}. Restore it; "
                "the same command then ends the stage."
            )
        context.tracker.note(f"the result is the checkpoint of step {best.step}, the lowest held-out loss")
        tensors = checkpoint.part(ENGINE).tensors
        self.engine.set_parameters({name: tensors[name] for name in self.engine.parameters})
        self.engine.ranks.barrier()
        return best.metrics


def _quality(metrics: Metrics) -> float:
    """What is compared between evaluations; higher is better."""
    return -metrics["loss"] if "loss" in metrics else metrics["score"]
