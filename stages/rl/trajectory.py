"""What PPO knows of each prompt and its response, and the tensors of many of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data.batches import tokenize
from stages.sampling.decoding import Response


@dataclass
class Sample:
    """A prompt, its response, and what the four roles say of it; tensors are (R,) on the CPU.

    `logprobs` are the policy's before its update; `rewards` the terms of the reward by name. `score`, what
    they come to less penalties, and `token_rewards` follow once the batch is whole; `advantages` and
    `returns` once there are `values`, the critic's before each token.
    """

    index: int
    prompt: tokenize.Prompt
    response: Response = field(default_factory=Response)
    logprobs: Tensor = torch.empty(0)
    ref_logprobs: Tensor = torch.empty(0)
    values: Tensor = torch.empty(0)
    rewards: dict[str, float] = field(default_factory=dict)
    score: float = 0.0
    token_rewards: Tensor = torch.empty(0)
    advantages: Tensor = torch.empty(0)
    returns: Tensor = torch.empty(0)

    @property
    def prompt_ids(self) -> list[int]:
        return self.prompt.prompt_ids

    @property
    def response_ids(self) -> list[int]:
        return self.response.ids

    @property
    def sampled_logprobs(self) -> Tensor:
        """The policy's by the engine that sampled: other than the training model's by rounding at least."""
        return torch.tensor(self.response.logprobs)

    @property
    def awaits_values(self) -> bool:
        """Whether the critic has not seen it."""
        return not self.values.numel()

    @property
    def kl(self) -> float:
        """Sum over the response of log pi - log pi_ref: an unbiased estimate of the KL, in nats."""
        return float((self.logprobs - self.ref_logprobs).sum())


def padded(samples: Sequence[Sample], name: str) -> Tensor:
    """One figure of all response tokens, right-padded with 0: (B, R)."""
    return pad_sequence([getattr(sample, name) for sample in samples], batch_first=True)


def token_mask(samples: Sequence[Sample]) -> Tensor:
    """(B, R) True on response tokens."""
    lengths = torch.tensor([len(sample.response_ids) for sample in samples])
    return torch.arange(int(lengths.max())) < lengths[:, None]


def put(samples: Sequence[Sample], name: str, figures: Tensor) -> None:
    """Give each sample its row of `figures` (B, >= R), without padding."""
    for sample, row in zip(samples, figures.cpu(), strict=True):
        # A view would take the whole batch along to other ranks.
        setattr(sample, name, row[: len(sample.response_ids)].clone())
