"""Neither the pad token nor the amount of padding changes any stage's loss or gradients."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from torch import Tensor
from transformers import AutoTokenizer

from configs.schema import Ppo, Rm, Rollout, Sft
from data.batches.tokenize import Demonstration, Prompt, Ranking
from stages import ppo, sft
from stages.distributed.ranks import Ranks
from stages.feedback.reward_ensemble import joint_step
from stages.feedback.reward_training import RewardModelTrainer
from stages.models.base_checks import supports_block_mask
from stages.models.roles import Role
from stages.sampling.sampler import open_sampler
from tests.support.engines import assert_same_gradients, engine_of, gradients_of
from tests.support.roles import new_role, ppo_roles, reward_model_of, tiny_roles
from tests.support.runs import untimed

PAD, ANOTHER = 0, 77
Outcome = tuple[dict[str, float], dict[str, Tensor]]
NOISE = random.Random(5)
LENGTHS = (3, 29, 8, 17, 5, 11)


def sequence(length: int) -> list[int]:
    return [NOISE.randrange(10, 380) for _ in range(length)]


DEMONSTRATIONS = [Demonstration(sequence(n), sequence(40 - n)) for n in LENGTHS]
RANKINGS = [
    Ranking("", sequence(n), [sequence(30 - n), sequence(n), sequence(9)], [0, 1, 1]) for n in LENGTHS
]
PROMPTS = [Prompt("", "", sequence(n)) for n in LENGTHS]


def sft_step(pad: int, micro: int, ranks: Ranks) -> Outcome:
    roles = new_role(tiny_roles(), Role.POLICY, seed=3)
    settings = Sft(batch_size=6, micro_batch_size=micro, max_grad_norm=0)
    engine = engine_of(roles, {Role.POLICY: 1e-3}, ranks, settings)
    return gradients_of(engine, lambda: sft.SftTrainer(engine, pad, micro).step(DEMONSTRATIONS))


def rm_step(
    pad: int, micro: int, ranks: Ranks, rankings: Sequence[Ranking] = RANKINGS, packing: bool = False
) -> Outcome:
    roles = new_role(tiny_roles(), Role.REWARD, seed=4, head=True)
    roles.heads[Role.REWARD].bias.requires_grad_(False)
    settings = Rm(batch_size=6, micro_batch_size=micro, max_grad_norm=0)
    engine = engine_of(roles, {Role.REWARD: 1e-3}, ranks, settings)
    trainer = RewardModelTrainer(engine, pad, micro, supports_block_mask(roles.causal), packing=packing)
    assert trainer.share_prompts
    return gradients_of(engine, lambda: joint_step([trainer], [rankings]))


@pytest.fixture
def ppo_step(adapters: dict[str, Path], tiny_folder: Path) -> Callable[[int, int, Ranks], Outcome]:
    """One iteration of one update, with responses of up to 150 tokens. Some end their turn earlier."""

    def step(pad: int, micro: int, ranks: Ranks) -> Outcome:
        tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
        tokenizer.pad_token_id = pad
        settings = Ppo(
            batch_size=6,
            micro_batch_size=micro,
            epochs=1,
            max_grad_norm=0,
            rollout=Rollout(max_new_tokens=150, batch_size=micro),
        )
        roles = ppo_roles(adapters)
        engine = engine_of(roles, {"policy": 1e-3, "critic": 1e-3}, ranks, settings)
        reward_model = reward_model_of(roles, tokenizer, ranks)
        with open_sampler(roles, tokenizer, ranks, settings.rollout) as sampler:
            trainer = ppo.PpoTrainer(engine, settings, sampler, reward_model, 2)
            (metrics, _), gradients = gradients_of(engine, lambda: trainer.iterate(0, PROMPTS))
        return untimed(metrics), gradients

    return step


@pytest.mark.parametrize("stage", ["sft", "rm", "ppo"])
def test_padding_changes_nothing(stage: str, ppo_step: Callable, ranks: Ranks) -> None:
    step = {"sft": sft_step, "rm": rm_step, "ppo": ppo_step}[stage]
    metrics, gradients = step(PAD, 12, ranks)
    if stage == "ppo":
        assert metrics["completions/clipped_ratio"] < 1, "responses must differ in length"

    other_metrics, other_gradients = step(ANOTHER, 12, ranks)
    assert other_metrics == metrics
    assert all(gradients[name].equal(other) for name, other in other_gradients.items())

    # Micro-batches of one row need no padding. Sums in another order are equal to rounding.
    unpadded_metrics, unpadded_gradients = step(PAD, 1, ranks)
    if stage == "rm":  # the demonstrations above are of one length
        assert unpadded_metrics.pop("padding") == 0 < metrics.pop("padding")
    assert unpadded_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-5)
    assert_same_gradients(unpadded_gradients, gradients, rtol=1e-4)


def test_packed_rankings_change_nothing_but_padding(ranks: Ranks) -> None:
    rankings = [Ranking("", sequence(n), [sequence(n), sequence(3), sequence(2)], [1, 0, 2]) for n in LENGTHS]
    metrics, gradients = rm_step(PAD, 12, ranks, rankings)
    for pad, micro in ((PAD, 12), (ANOTHER, 3)):
        packed_metrics, packed_gradients = rm_step(pad, micro, ranks, rankings, packing=True)
        assert packed_metrics.pop("padding") < 0.5 * metrics["padding"]
        expected = {name: value for name, value in metrics.items() if name != "padding"}
        assert packed_metrics == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert_same_gradients(packed_gradients, gradients, rtol=1e-4)
