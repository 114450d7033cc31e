"""A launcher runs this: what an engine does to its weights, at each ZeRO stage and on several ranks.

deepspeed engine_checks.py

A check raises if it fails. The tests call the checks on one rank, inside their own process.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from configs.schema import DeepSpeed, Sft  # noqa: E402
from data.batches.tokenize import Demonstration  # noqa: E402
from stages import sft  # noqa: E402
from stages.distributed.process_group import init_distributed  # noqa: E402
from stages.distributed.ranks import Ranks  # noqa: E402
from stages.training.engine import Engine, load_parameters  # noqa: E402
from tests.support.roles import models_of, new_role, tiny_roles  # noqa: E402

SETTINGS = Path(__file__).resolve().parents[2] / "configs" / "deepspeed"
ZERO_STAGES = (0, 2, 3)
BATCHES = [[Demonstration([5, 6, 7 + i], [8, 9 + i, 2]), Demonstration([5], [11 + i, 2])] for i in range(4)]
LOSS = sft.nll_loss


def trainer_at(zero: int, ranks: Ranks, tensors: Mapping[str, Tensor] | None = None) -> sft.SftTrainer:
    """A trainer whose policy holds `tensors`, or weights that are always the same."""
    config = DeepSpeed(config=str(SETTINGS / f"zero{zero}.json"))
    training = Sft(learning_rate=1e-3, scheduler="constant", warmup_ratio=0, batch_size=2)
    roles = new_role(tiny_roles(), "policy", 0)
    if tensors:
        load_parameters(models_of(roles), tensors, ["policy"])
    return sft.SftTrainer(Engine(models_of(roles), {"policy": 1e-3}, training, 10, config, ranks), 0, 1)


def same_tensors(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    assert actual and actual.keys() == expected.keys()
    return all(torch.equal(tensor, expected[name]) for name, tensor in actual.items())


def spoiled_step(trainer: sft.SftTrainer, factor: float) -> None:
    """Take a step whose loss is `factor` times the right one on the last rank."""
    ranks = trainer.engine.ranks
    last = ranks.rank == ranks.world - 1

    def spoiled_loss(*arguments: Any) -> Tensor:
        loss = LOSS(*arguments)
        return loss * factor if last else loss

    sft.nll_loss = spoiled_loss  # type: ignore[assignment]
    try:
        assert not math.isfinite(trainer.step(BATCHES[1])["grad_norm"])
    finally:
        sft.nll_loss = LOSS


def counts(trainer: sft.SftTrainer) -> tuple[int, int, int]:
    """Steps, skipped steps, and steps skipped in a row."""
    counters = trainer.engine.counters
    return counters.steps, counters.skipped, counters.skipped_in_row


def check_nothing_of_a_bad_update_remains(zero: int, factor: float, ranks: Ranks) -> None:
    spoiled, undisturbed = trainer_at(zero, ranks), trainer_at(zero, ranks)
    for trainer in (spoiled, undisturbed):
        trainer.step(BATCHES[0])
    before = spoiled.engine.state_dict().tensors
    spoiled_step(spoiled, factor)
    assert same_tensors(spoiled.engine.state_dict().tensors, before), (
        "the bad update changed weights or moments"
    )
    assert counts(spoiled) == (2, 1, 1)
    for trainer in (spoiled, undisturbed):
        trainer.step(BATCHES[2])
    assert counts(spoiled)[1:] == (1, 0)
    assert not same_tensors(spoiled.engine.state_dict().tensors, before)
    assert same_tensors(spoiled.engine.state_dict().tensors, undisturbed.engine.state_dict().tensors), (
        "gradients of the bad update were left"
    )


def check_resumed_after_a_bad_update(zero: int, ranks: Ranks) -> None:
    """Adam has taken fewer steps than the schedule; the resumed engine must know both numbers."""
    uninterrupted = trainer_at(zero, ranks)
    uninterrupted.step(BATCHES[0])
    spoiled_step(uninterrupted, math.nan)
    state = uninterrupted.engine.state_dict()
    assert state.values["steps"] == 2
    resumed = trainer_at(zero, ranks, state.tensors)
    resumed.engine.load_state_dict(state)
    assert same_tensors(resumed.engine.state_dict().tensors, state.tensors)
    for trainer in (uninterrupted, resumed):
        trainer.step(BATCHES[2])
    assert same_tensors(resumed.engine.state_dict().tensors, uninterrupted.engine.state_dict().tensors)
    assert counts(resumed) == (3, 1, 0)


def check_parameters_are_replaced(zero: int, ranks: Ranks) -> None:
    """The engine returns the parameters that were set, before training and after a step."""
    trainer = trainer_at(zero, ranks)
    for batch in BATCHES[:2]:
        before = trainer.engine.role_tensors("policy")
        replaced = {name: tensor + 1 for name, tensor in before.items()}
        trainer.engine.set_parameters(replaced)
        assert same_tensors(trainer.engine.role_tensors("policy"), replaced)
        trainer.step(batch)
        assert not same_tensors(trainer.engine.role_tensors("policy"), replaced), "the step changed nothing"


def main() -> None:
    os.environ.setdefault("LOCAL_RANK", "0")
    ranks = init_distributed(DeepSpeed())
    for zero in ZERO_STAGES:
        for factor in (math.nan, math.inf):
            check_nothing_of_a_bad_update_remains(zero, factor, ranks)
        check_resumed_after_a_bad_update(zero, ranks)
        check_parameters_are_replaced(zero, ranks)
    print(f"rank {ranks.rank}: all checks passed", flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
