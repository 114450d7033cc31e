"""Where a stage starts: at its newest good checkpoint, or at step 0."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from configs.errors import UserError
from configs.schema import Training
from data.batches.sampler import seed_from
from data.storage.records import record_faults
from stages.context import Context
from stages.models.base_checks import check_base
from stages.models.role_models import RoleModels
from stages.training.checkpoint import OTHER_VERSION, Checkpoint, newest_checkpoint
from stages.training.engine import Engine, load_parameters

ENGINE = "engine"  # its part of a checkpoint


def seed_step(seed: int, stage: str, step: int, rank: int) -> None:
    """Seed torch for one step. Nothing random carries over from one step to the next."""
    torch.manual_seed(seed_from(seed, stage, step, rank))


def find_checkpoint(context: Context) -> Checkpoint | None:
    """The checkpoint to resume from, if the stage resumes and it exists. Every rank must call.

    Raises:
        UserError: checkpoints exist, and none of them is good.
    """
    if not context.resume:
        return None
    root = context.folder / "checkpoints"
    checkpoint, faults = newest_checkpoint(root, context.run_id)
    if checkpoint is None and faults and all(fault.endswith(OTHER_VERSION) for fault in faults):
        raise UserError(
            f"{root}: another version of Tristage wrote these checkpoints. Resume with that version, or "
            "start over with --fresh."
        )
    for fault in faults:
        context.tracker.note(fault)
    if checkpoint is None and faults:
        raise UserError(
            f"{root}: none of the checkpoints is good. Restore the files, or start over with --fresh. "
            f"{faults[0]}"
        )
    if checkpoint is None:
        context.tracker.rewind(-1)  # earlier records belong to steps that no checkpoint holds
    context.ranks.barrier()  # no rank writes before all have read
    return checkpoint


def start_engine(
    context: Context,
    models: RoleModels,
    learning_rates: Mapping[str, float],
    training: Training,
    updates: int,
    checkpoint: Checkpoint | None,
) -> Engine:
    """An engine over `models`, with the state of `checkpoint` if there is one. Every rank must call.

    Args:
        learning_rates: peak learning rate of each role to train.
        updates: optimizer steps of the whole stage, for the schedule.

    Raises:
        UserError: the checkpoint belongs to another base or other roles, or the engine refuses its settings.
    """
    deepspeed, ranks = context.config.deepspeed, context.ranks
    if checkpoint is None:
        return Engine(models, learning_rates, training, updates, deepspeed, ranks)
    check_base(context.config, context.stage, checkpoint.base, models.base_digest)
    state = checkpoint.part(ENGINE)
    load_parameters(models, state.tensors, learning_rates)
    engine = Engine(models, learning_rates, training, updates, deepspeed, ranks)
    engine.load_state_dict(state)
    for fault in record_faults(context.folder, checkpoint.records):
        context.tracker.note(fault)
    context.tracker.rewind(checkpoint.step)
    return engine
