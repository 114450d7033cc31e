"""How one answer is sampled. The rows of a batch may each have their own settings and their own noise."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.schema import Rollout
from stages.sampling.decoding import Noise, logits_warpers, sample

GREEDY_BELOW = 1e-3  # a lower temperature takes the likeliest token; the quotients would overflow


@dataclass(frozen=True)
class Sampling:
    """The distribution that tokens are sampled from.

    Attributes:
        temperature: divides the logits; below `GREEDY_BELOW`, the likeliest token is taken.
        top_p: sample from the likeliest tokens whose probabilities sum to it.
        top_k: sample from the k likeliest tokens; None for all.
    """

    temperature: float
    top_p: float = 1.0
    top_k: int | None = None

    @classmethod
    def of_run(cls, rollout: Rollout) -> Sampling:
        """As PPO sampled. Temperature, top-p and top-k are part of what was trained."""
        return cls(rollout.temperature, rollout.top_p, rollout.top_k)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < GREEDY_BELOW

    def warp(self, logits: Tensor) -> Tensor:
        """Logits (B, V), fp32, divided by the temperature; -inf on excluded tokens. Greedy: unchanged."""
        if self.is_greedy:
            return logits
        rollout = Rollout(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k)
        warped: Tensor = logits_warpers(rollout)(torch.empty(0, dtype=torch.long), logits)
        return warped


@dataclass(frozen=True)
class Token:
    """A sampled token.

    Attributes:
        id: its id.
        logprob: in the distribution that it was sampled from.
        top: the likeliest ids of that distribution with their log-probabilities, as many as were asked for.
    """

    id: int
    logprob: float
    top: list[tuple[int, float]]


def sample_rows(
    logits: Tensor, settings: Sequence[Sampling], noises: Sequence[Noise], tops: Sequence[int]
) -> list[Token]:
    """A token for each row of logits (B, V). A row's token depends on no other row.

    Args:
        noises: the noise of each row, from its own generator.
        tops: for each row the number of `Token.top`.
    """
    warped = _warp_rows(logits.float(), settings)
    tokens, logprobs = sample(warped, lambda count: torch.cat([noise(count) for noise in noises]))
    greedy = torch.tensor([each.is_greedy for each in settings], device=tokens.device)
    if greedy.any():
        tokens = torch.where(greedy, warped.argmax(1), tokens)
        logprobs = warped.log_softmax(1).gather(1, tokens[:, None]).squeeze(1)
    rows = zip(warped, tokens.tolist(), logprobs.tolist(), tops, strict=True)
    return [Token(token, logprob, _top(row, count)) for row, token, logprob, count in rows]


def _warp_rows(logits: Tensor, settings: Sequence[Sampling]) -> Tensor:
    rows_of: dict[Sampling, list[int]] = defaultdict(list)
    for row, each in enumerate(settings):
        rows_of[each].append(row)
    if len(rows_of) == 1:
        return settings[0].warp(logits)
    warped = torch.empty_like(logits)
    for each, rows in rows_of.items():
        warped[rows] = each.warp(logits[rows])
    return warped


def _top(logits: Tensor, count: int) -> list[tuple[int, float]]:
    """The `count` likeliest of the tokens that could be sampled, with their log-probabilities."""
    if not count:
        return []
    values, ids = logits.log_softmax(0).topk(min(count, len(logits)))
    return [
        (id_, value) for id_, value in zip(ids.tolist(), values.tolist(), strict=True) if value > -math.inf
    ]
