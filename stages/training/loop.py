"""The loop that all stages share: take steps, log, evaluate, save, and go on from where a run stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from configs.errors import UserError
from configs.schema import Epochs, Training
from data.batches.sampler import global_batch, seed_from
from data.storage.records import record_faults, records
from stages.context import Context, Paused, Tracker
from stages.distributed.ranks import Ranks
from stages.models.base_checks import check_base
from stages.models.role_models import RoleModels
from stages.training.checkpoint import (
    Checkpoint,
    checkpoint_folder,
    newest_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from stages.training.engine import Engine, load_parameters
from stages.training.throughput import Meter

Figures = Mapping[str, float]


@dataclass
class Progress:
    """Where a stage stands: `step` done of `total`, and what it must remember across a restart."""

    total: int
    step: int = 0
    memory: dict[str, Any] = field(default_factory=dict)


class Stop(Exception):
    """Raised by a step that ends training without an update: why, and the metrics that showed it."""

    def __init__(self, reason: str, metrics: Figures) -> None:
        super().__init__(reason)
        self.metrics = metrics


def find_resume(context: Context, ranks: Ranks) -> Checkpoint | None:
    """The checkpoint to go on from, if the context asks for it and there is one.

    Raises:
        UserError: there are checkpoints, and none of them is good.
    """
    if not context.resume:
        return None
    checkpoint, complaints = newest_checkpoint(context.folder / "checkpoints", context.run_id)
    for complaint in complaints:
        context.tracker.note(complaint)
    if checkpoint is None and complaints:
        raise UserError(
            f"{context.folder / 'checkpoints'}: none of the checkpoints is good. Put the files back, or "
            f"start over with --fresh. {complaints[0]}"
        )
    if checkpoint is None:
        context.tracker.rewind(-1)  # what was recorded led to nothing that is left
    ranks.barrier()  # nobody writes before all have read
    return checkpoint


def seed_step(seed: int, stage: str, step: int, rank: int) -> None:
    """Seed torch for one step. Nothing random carries over from one step to the next."""
    torch.manual_seed(seed_from(seed, stage, step, rank))


def start_engine(
    context: Context,
    roles: RoleModels,
    rates: Mapping[str, float],
    training: Training,
    updates: int,
    ranks: Ranks,
    progress: Progress,
    checkpoint: Checkpoint | None,
) -> Engine:
    """An engine over `roles`, and `progress`, where `checkpoint` left them; at the beginning without one.

    Args:
        rates: peak learning rate of each role to train.
        updates: optimizer steps of the whole stage, for the schedule.
    """
    if checkpoint is None:
        return Engine(roles, rates, training, updates, context.config.deepspeed, ranks)
    check_base(context.config, context.stage, checkpoint.state["base"], roles.base_digest)
    tensors = checkpoint.tensors()
    load_parameters(roles, tensors, rates)
    engine = Engine(roles, rates, training, updates, context.config.deepspeed, ranks)
    progress.step, progress.memory = checkpoint.step, checkpoint.state["memory"]
    best = progress.memory.get("best")
    if best and not checkpoint_folder(checkpoint.folder.parent, best["step"]).is_dir():
        del progress.memory["best"]  # a later one had taken its place, and is damaged now
    skipped = progress.memory.get("skipped", (0, 0))
    engine.load_state(tensors, checkpoint.state["optimizer_steps"], *skipped)
    for fault in record_faults(context.folder, checkpoint.state["records"]):
        context.tracker.note(fault)
    context.tracker.rewind(progress.step)
    return engine


def run_steps(
    context: Context,
    training: Training,
    engine: Engine,
    progress: Progress,
    meter: Meter,
    size: int,
    take_step: Callable[[int, list[int]], Figures],
    evaluate: Callable[[], Figures],
) -> tuple[Figures, Figures]:
    """Take steps `progress.step` ... `progress.total - 1`, logging, evaluating and saving on the way.

    Args:
        size: training examples, from which each step's batch is drawn.
        take_step: does step number `step` (from 0) on the examples at the given places, and returns its
            metrics.
        evaluate: figures on held-out data, logged as `eval/...` before the first step, every
            `eval_steps` and after the last one; empty where nothing is held out.

    Raises:
        UserError: too many updates in a row had a gradient that is not finite, or nothing is held out to
            choose the best checkpoint by.
        Paused: a signal came; the step in hand was finished, and saved whatever `save_steps` says.

    Returns:
        The figures before the first step and after the last. They are in the checkpoints, so that a
        stage that ends on its second attempt has them, too.
    """
    tracker, ranks, memory = context.tracker, engine.ranks, progress.memory
    if progress.step == 0:
        memory["before"] = _evaluated(tracker, evaluate, 0)
    if isinstance(training, Epochs) and training.use_best and not memory["before"]:
        raise UserError(
            f"{context.stage}.use_best: nothing is held out to choose by. Set data.{context.stage}.held_out, "
            "or use_best to false."
        )
    with context.signals_deferred() as signal_noted:
        tracker.phase(f"{context.stage}: training", progress.total, progress.step)
        while progress.step < progress.total and "stopped" not in memory:
            seed_step(context.seed, context.stage, progress.step, ranks.rank)
            picks = global_batch(size, training.batch_size, context.seed, progress.step)
            skipped = engine.skipped
            try:
                metrics = dict(take_step(progress.step, picks))
            except Stop as stop:
                tracker.note(f"training ends after {progress.step} of {progress.total} steps: {stop}")
                # A step of its own, so that no other has two evaluations or two checkpoints.
                progress.step += 1
                memory["stopped"] = str(stop)
                tracker.log(stop.metrics, progress.step)
                memory["after"] = _evaluated(tracker, evaluate, progress.step)
                save(context, training, engine, progress)
                break
            progress.step += 1
            if engine.skipped > skipped:
                if engine.skipped_in_row <= engine.skipped - skipped:
                    memory["skipping_since"] = progress.step  # none of the row lies before this step
                _report_skipped_update(context, training, engine, progress, picks, metrics)
            done, last = progress.step, progress.step == progress.total
            evaluated = last or (training.eval_steps is not None and done % training.eval_steps == 0)
            metrics |= {"tokens_per_second": meter.tokens_per_second, "skipped_updates": engine.skipped}
            if done % training.logging_steps == 0 or last:
                tracker.log(metrics, done)
            tracker.advance(1, **metrics)
            if evaluated:
                memory["after"] = _evaluated(tracker, evaluate, done)
            signum = ranks.max(signal_noted())  # all ranks leave after the same step
            if signum or last or done % training.save_steps == 0:
                memory["skipped"] = engine.skipped, engine.skipped_in_row
                if evaluated:
                    _compare_with_best(memory, done)
                save(context, training, engine, progress)
            if signum:
                raise Paused(signum, done, progress.total)
    return memory["before"], memory["after"]


def _report_skipped_update(
    context: Context,
    training: Training,
    engine: Engine,
    progress: Progress,
    picks: list[int],
    metrics: Figures,
) -> None:
    """Say that an update was left out, and on which batch; give up where there are too many in a row."""
    with_it = ", ".join(name for name, value in metrics.items() if not math.isfinite(value))
    context.tracker.note(
        f"step {progress.step}: an update was skipped, its gradient is not finite (batch: examples {picks}; "
        f"not finite: {with_it})"
    )
    if engine.skipped_in_row >= training.max_skipped_updates:
        raise UserError(
            f"{engine.skipped_in_row} updates in a row, up to step {progress.step}, the first at step "
            f"{progress.memory['skipping_since']}, had no finite gradient "
            f"({context.stage}.max_skipped_updates). Not finite in the last: {with_it}. Look at the "
            f"examples that the log names; checkpoints are in {context.folder / 'checkpoints'}. Where a "
            "reward is to blame, mend it, and the same command resumes; else lower "
            f"{context.stage}.learning_rate and start over with --fresh."
        )


def _evaluated(tracker: Tracker, evaluate: Callable[[], Figures], step: int) -> Figures:
    figures = evaluate()
    if figures:
        tracker.log({f"eval/{name}": value for name, value in figures.items()}, step)
    return figures


def _compare_with_best(memory: dict[str, Any], step: int) -> None:
    """Remember the step whose checkpoint has the lowest held-out loss; in PPO, the highest score."""
    figures, best = memory["after"], memory.get("best")
    if not figures or not math.isfinite(_goodness(figures)):
        return
    if best is None or _goodness(figures) > _goodness(best["figures"]):
        memory["best"] = {"step": step, "figures": figures}


def _goodness(figures: Figures) -> float:
    return -figures["loss"] if "loss" in figures else figures["score"]


def go_back_to_best(context: Context, engine: Engine, progress: Progress) -> Figures:
    """Give the roles the parameters of the best checkpoint, when training is over; returns its evaluation.

    Raises:
        UserError: no evaluation was a number, or the checkpoint is not whole any more.
    """
    best = progress.memory.get("best")
    if best is None:
        raise UserError(
            f"{context.stage}.use_best: no held-out loss was a finite number. Look at the metrics."
        )
    found = read_checkpoint(checkpoint_folder(context.folder / "checkpoints", best["step"]), context.run_id)
    if isinstance(found, str):
        raise UserError(
            f"the best checkpoint, of step {best['step']}, cannot be used: {found}. Restore it; "
            "the same command then ends the stage."
        )
    context.tracker.note(
        f"the result is the checkpoint of step {best['step']}, whose held-out loss is lowest"
    )
    tensors = found.tensors()
    engine.put({name: tensors[name] for name in engine.parameters})
    engine.ranks.barrier()
    figures: Figures = best["figures"]
    return figures


def save(context: Context, training: Training, engine: Engine, progress: Progress) -> None:
    """Write a checkpoint of where the stage stands."""
    tensors = engine.state()
    if engine.ranks.rank == 0:
        save_checkpoint(
            context.folder / "checkpoints",
            progress.step,
            tensors,
            {
                "run": context.run_id,
                "optimizer_steps": engine.steps,
                "base": engine.roles.base_digest,
                "memory": progress.memory,
                "records": records(context.folder),
            },
            training.keep_checkpoints,
            progress.memory.get("best", {}).get("step"),
        )
    engine.ranks.barrier()
