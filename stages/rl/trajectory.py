"""A batch of prompts and responses, with the tensors that PPO computes for each response token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from data.batches.tokenize import Prompt
from stages.sampling.decoding import Response


@dataclass(frozen=True)
class Trajectory:
    """B prompts, their responses, and their log-probabilities, values and reward terms.

    Tensors lie on the CPU. Rows are padded on the right with 0 to R, the longest response.

    Attributes:
        prompts, responses: B each.
        sampled_logprobs: (B, R) log-probabilities by the engine that sampled. They differ from the training
            model's, at least by rounding.
        logprobs: (B, R) of the policy before its update, over the tokens that could be sampled.
        ref_logprobs: (B, R) of the reference, always over the whole vocabulary.
        values: (B, R) of the critic before each token.
        terms: (B,) each, the terms of the reward by name.
        disagreement: (B,) deviation between the members of the reward model; None if it is one.
    """

    prompts: list[Prompt]
    responses: list[Response]
    sampled_logprobs: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    terms: dict[str, Tensor]
    disagreement: Tensor | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.responses)

    @property
    def lengths(self) -> Tensor:
        """(B,) response tokens."""
        return torch.tensor([len(response.ids) for response in self.responses])

    @property
    def mask(self) -> Tensor:
        """(B, R) True on response tokens."""
        return torch.arange(self.logprobs.shape[1]) < self.lengths[:, None]

    @property
    def kl(self) -> Tensor:
        """(B,) sum of log pi - log pi_ref over a response: an unbiased estimate of the KL, in nats.

        pi is the distribution that was sampled, after top-k and top-p. pi_ref is the reference's full one, at
        the same temperature.
        """
        return (self.logprobs - self.ref_logprobs).sum(1)

    @property
    def support_size(self) -> float | None:
        """Mean number of tokens that could be sampled at a response token; None if all could."""
        sizes = [len(token_ids) for response in self.responses for token_ids in response.support]
        return fmean(sizes) if sizes else None

    @property
    def tokens(self) -> int:
        """Tokens of prompts and responses, padding aside."""
        return sum(len(prompt.prompt_ids) for prompt in self.prompts) + int(self.lengths.sum())

    def select(self, rows: Sequence[int]) -> Self:
        """The given rows, in that order, padded to the longest response among them."""
        longest, index = int(self.lengths[list(rows)].max()), torch.tensor(rows)

        def pick(value: Any) -> Any:
            if value is None:
                return None
            if isinstance(value, Tensor):
                return value[index, :longest] if value.dim() == 2 else value[index]
            if isinstance(value, dict):
                return {name: pick(column) for name, column in value.items()}
            return [value[i] for i in rows]

        return type(self)(**{name: pick(value) for name, value in vars(self).items()})

    @classmethod
    def join(cls, parts: Sequence[Trajectory]) -> Trajectory:
        """The rows of all parts, one part after another."""
        longest = max(part.logprobs.shape[1] for part in parts)

        def stack(tensors: Sequence[Tensor]) -> Tensor:
            return torch.cat([pad(tensor, (0, longest - tensor.shape[1])) for tensor in tensors])

        found = [part.disagreement for part in parts if part.disagreement is not None]
        return Trajectory(
            prompts=[prompt for part in parts for prompt in part.prompts],
            responses=[response for part in parts for response in part.responses],
            sampled_logprobs=stack([part.sampled_logprobs for part in parts]),
            logprobs=stack([part.logprobs for part in parts]),
            ref_logprobs=stack([part.ref_logprobs for part in parts]),
            values=stack([part.values for part in parts]),
            terms={name: torch.cat([part.terms[name] for part in parts]) for name in parts[0].terms},
            disagreement=torch.cat(found) if found else None,
        )


@dataclass(frozen=True)
class Experience(Trajectory):
    """A trajectory with its rewards.

    Attributes:
        scores: (B,) the terms of the reward added up and shaped, without the KL penalty.
        rewards: (B, R) per token: the KL penalty, and the score on the last token.
        advantages: (B, R), which the update trains the policy on.
    """

    scores: Tensor
    rewards: Tensor
    advantages: Tensor
