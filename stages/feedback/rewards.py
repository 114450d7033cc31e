"""What a response is worth: reward model, functions and endpoints added up, normalised, less penalties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from configs.errors import UserError
from configs.schema import Ppo, Reward
from stages.feedback.reward_endpoint import Endpoint
from stages.feedback.user_functions import RewardFunction, as_numbers, load_function
from stages.maths.statistics import RunningMoments

RM, KEY = "rm", "ppo.rewards"


class Rewards:
    """The terms of the reward other than the reward model, asked about the texts of prompts and responses."""

    def __init__(self, terms: Sequence[Reward]) -> None:
        """Find the functions and endpoints of `terms`.

        Raises:
            UserError: a function cannot be imported, two terms have one name, or a key is not set.
        """
        names = [reward_name(term) for term in terms]
        if len(set(names)) < len(names):
            raise UserError(
                f"ppo.rewards: two terms are called {max(names, key=names.count)}. Set their `name`."
            )
        self.weights = {name: term.weight for name, term in zip(names, terms, strict=True)}
        self._sources = {
            name: _source(term) for name, term in zip(names, terms, strict=True) if term.source != RM
        }
        self.of_reward_model = [name for name in names if name not in self._sources]

    @property
    def uses_reward_model(self) -> bool:
        return bool(self.of_reward_model)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> dict[str, list[float]]:
        """The value of each response by the name of each term but the reward model.

        Raises:
            UserError: a source fails, or does not give one number for each response. One that is not finite
                is the update's to skip.
        """
        return {
            name: as_numbers(source(prompts, responses), len(responses), KEY, name)
            for name, source in self._sources.items()
        }

    def total(self, values: dict[str, float]) -> float:
        """The weighted sum of one response's values."""
        return sum(self.weights[name] * value for name, value in values.items())


def reward_name(term: Reward) -> str:
    """What a term is called in metrics."""
    if term.name or term.source == RM:
        return term.name or RM
    return urlsplit(term.source).netloc if "://" in term.source else term.source.partition(":")[2]


def _source(term: Reward) -> RewardFunction:
    return Endpoint(term) if "://" in term.source else load_function(term.source, KEY)


def shape_rewards(totals: Tensor, lengths: Tensor, ended: Tensor, ppo: Ppo, memory: dict[str, Any]) -> Tensor:
    """Final scores of a whole batch: normalised, clipped, less the penalties for length and for not ending.

    Args:
        totals: (B,) weighted sums of the terms.
        lengths: (B,) response tokens.
        ended: (B,) True where a response ended its turn.
        memory: `reward_moments` in it is what earlier batches left, and is brought up to date.
    """
    scores = torch.where(totals.isfinite(), totals, torch.nan)  # clipping would make a number of infinity
    if ppo.normalize_rewards:
        moments = RunningMoments(**memory.get("reward_moments", {}))
        moments.update(totals[totals.isfinite()])
        memory["reward_moments"] = asdict(moments)
        scores = (scores - moments.mean) / (moments.deviation + 1e-8)
    if ppo.clip_reward:
        scores = scores.clamp(-ppo.clip_reward, ppo.clip_reward)
    return scores - ppo.length_penalty * lengths - torch.where(ended, 0.0, ppo.missing_eos_penalty or 0.0)
