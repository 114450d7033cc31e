"""The reward of a response: the weighted sum of reward model, functions and endpoints, then penalties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from configs.schema import Ppo, Reward
from stages.feedback.reward_endpoint import Endpoint
from stages.feedback.user_functions import RewardFunction, as_numbers, load_function
from stages.maths.statistics import RunningMoments
from stages.training.checkpoint import State

KEY = "ppo.rewards"


class Rewards:
    """The terms of the reward other than the reward model, from the texts of prompts and responses."""

    def __init__(self, terms: Sequence[Reward]) -> None:
        """Find the functions and endpoints of `terms`, whose labels differ.

        Raises:
            UserError: a function cannot be imported, or a key is not set.
        """
        names = [term.label for term in terms]
        self.weights = {name: term.weight for name, term in zip(names, terms, strict=True)}
        self._sources = {
            name: _source(term) for name, term in zip(names, terms, strict=True) if term.kind != "rm"
        }
        self.of_reward_model = [name for name in names if name not in self._sources]

    @property
    def uses_reward_model(self) -> bool:
        return bool(self.of_reward_model)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> dict[str, list[float]]:
        """The value of each response by the name of each term but the reward model.

        Raises:
            UserError: a source fails, or does not return one finite number for each response.
        """
        return {name: source(prompts, responses) for name, source in self._sources.items()}

    @property
    def asked(self) -> list[str]:
        """The labels of all terms but the reward model."""
        return list(self._sources)

    def of_each(self, pairs: Sequence[tuple[str, str]]) -> list[dict[str, float]]:
        """The terms but the reward model of each pair of prompt and response, by label."""
        values = self([prompt for prompt, _ in pairs], [response for _, response in pairs])
        return [{name: values[name][row] for name in values} for row in range(len(pairs))]

    def total(self, values: Mapping[str, Tensor]) -> Tensor:
        """(B,) the weighted sum of the terms' values, (B,) each."""
        return torch.stack([self.weights[name] * value for name, value in values.items()]).sum(0)


def _source(term: Reward) -> RewardFunction:
    return Endpoint(term) if term.kind == "endpoint" else load_function(term.source, KEY, as_numbers)


class RewardShaper:
    """Turns weighted sums of the terms into final scores: normalised, clipped, less penalties."""

    def __init__(self, ppo: Ppo) -> None:
        self.moments, self._ppo = RunningMoments(), ppo

    def shape(self, totals: Tensor, lengths: Tensor, ended: Tensor) -> Tensor:
        """Final scores (B,) of a whole batch; updates the running moments.

        Args:
            totals: (B,) weighted sums of the terms.
            lengths: (B,) response tokens.
            ended: (B,) True if a response ended its turn.
        """
        ppo = self._ppo
        scores = torch.where(totals.isfinite(), totals, torch.nan)  # clipping would make infinity a number
        if ppo.normalize_rewards:
            self.moments.update(totals[totals.isfinite()])
            scores = (scores - self.moments.mean) / (self.moments.deviation + 1e-8)
        if ppo.clip_reward:
            scores = scores.clamp(-ppo.clip_reward, ppo.clip_reward)
        missing_eos = torch.where(ended, 0.0, ppo.missing_eos_penalty or 0.0)
        return scores - ppo.length_penalty * lengths - missing_eos

    def state_dict(self) -> State:
        return State(asdict(self.moments))

    def load_state_dict(self, state: State) -> None:
        self.moments = RunningMoments(**state.values)
