"""The noise of rollouts, and advantages and returns by hand, where gamma and lambda have different roles."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from configs.schema import Ppo
from data.batches.tokenize import Prompt
from stages.distributed.ranks import Ranks
from stages.ppo import PpoTrainer
from stages.rl.experience import ExperienceCollector
from stages.rl.trajectory import Experience
from stages.rl.update import PpoUpdate, estimate_advantages
from stages.sampling.decoding import Response
from tests.support.roles import CPU
from tests.unit.stages.rl.test_trajectory import trajectory

NOTHING: Any = None
ONE_MODEL: Any = SimpleNamespace(is_ensemble=False)
SAME = [Prompt("a", "a", [5, 6]), Prompt("a", "a", [5, 6]), Prompt("b", "b", [7]), Prompt("b", "b", [7])]
PPO = Ppo(gamma=0.9, lam=0.5, whiten_advantages=False, clip_range_value=None)
# delta = r + 0.9 V' - V: (0.9 * 0.2 - 0.5, 0.9 * 0.1 - 0.2, 1 - 0.1); A = delta + 0.9 * 0.5 * A'
ADVANTAGES = [-0.32 + 0.45 * 0.295, -0.11 + 0.45 * 0.9, 0.9]
VALUES = [0.5, 0.2, 0.1]


class Engine:
    """A sampler that answers nothing, and keeps the seeds that it was given."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.ranks, self.roles, self.seeds = Ranks(rank, world, CPU), NOTHING, list[int]()

    def respond(self, role: str, prompts: list[list[int]], seeds: list[int]) -> list[Response]:
        self.seeds = seeds
        return [Response([1]) for _ in prompts]


def seeds(step: int, rank: int = 0, world: int = 1, seed: int = 3) -> list[int]:
    engine: Any = Engine(rank, world)
    ppo = Ppo(batch_size=4, old_logprobs="recomputed")
    ExperienceCollector(ppo, engine, ONE_MODEL, seed).roll_out(step, SAME)
    found: list[int] = engine.seeds
    return found


def test_noise_of_a_rollout_is_new_at_every_step_and_for_every_response() -> None:
    found = {step: seeds(step) for step in range(3)}
    drawn = [seed for of_step in found.values() for seed in of_step]
    assert len(set(drawn)) == len(drawn) == 12, "two responses have the same noise"
    assert seeds(1) == found[1], "a stage that resumes at this step has other noise"
    assert not set(seeds(1, seed=4)) & set(drawn)


def test_noise_of_a_rollout_does_not_depend_on_the_number_of_ranks() -> None:
    assert seeds(2, rank=0, world=2) + seeds(2, rank=1, world=2) == seeds(2)


def experience() -> Experience:
    """One response of three tokens, whose last one is rewarded."""
    batch = replace(trajectory(3), values=torch.tensor([VALUES]))
    scores, rewards = torch.tensor([1.0]), torch.tensor([[0.0, 0.0, 1.0]])
    advantages = estimate_advantages(batch, rewards, PPO)
    return Experience(**vars(batch), scores=scores, rewards=rewards, advantages=advantages)


def test_advantages_by_hand() -> None:
    assert experience().advantages.tolist()[0] == pytest.approx(ADVANTAGES)


def test_whitening_does_not_amplify_what_is_no_signal() -> None:
    """Two responses of two tokens, whose values differ by hundredths. A = score - V with lambda 1."""
    batch = replace(trajectory(2, 2), values=torch.tensor([[0.01, 0.02], [0.03, 0.0]]))
    ppo = Ppo(gamma=1.0, lam=1.0)

    def advantages(*scores: float, whiten: bool = True) -> torch.Tensor:
        rewards = torch.tensor([[0.0, score] for score in scores])
        return estimate_advantages(batch, rewards, ppo.model_copy(update={"whiten_advantages": whiten}))

    assert not advantages(1.0, 1.0).any()
    assert not advantages(1.0, 1.001).any()  # their deviation is 0.0005, that of the values 0.011
    assert advantages(1.0, 1.001, whiten=False).all()
    varied = advantages(1.0, 1.1)
    assert float(varied.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(varied.std(unbiased=False)) == pytest.approx(1.0, abs=1e-4)


def test_returns_of_the_critic_by_hand() -> None:
    """The loss is half the squared advantage where the critic still gives its old values."""
    given = experience()
    batch: Any = SimpleNamespace(mask=given.mask)
    loss, _ = PpoUpdate(NOTHING, PPO, NOTHING, NOTHING)._critic_loss(given, batch, 3, given.values)
    assert float(loss) == pytest.approx(sum(each**2 for each in ADVANTAGES) / 2 / 3)


def test_explained_variance_by_hand() -> None:
    trainer: Any = SimpleNamespace(ppo=PPO)
    found = PpoTrainer._advantage_metrics(trainer, experience())
    returns = [advantage + value for advantage, value in zip(ADVANTAGES, VALUES, strict=True)]
    expected = 1 - torch.tensor(ADVANTAGES).var() / torch.tensor(returns).var()
    assert found == {"val/explained_variance": pytest.approx(float(expected), rel=1e-5)}
