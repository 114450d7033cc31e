"""Prompts and responses as one padded batch, and the statistics of a role over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data.batches.collate import prompts as collate_prompts
from stages.models.adapter_files import Pooling
from stages.models.queries import ScalarQuery, TokenQuery
from stages.models.role_models import RoleForward
from stages.models.token_statistics import TokenStatistics


@dataclass(frozen=True)
class ResponseBatch:
    """Left-padded prompts and right-padded responses, so all responses begin in the same column.

    Attributes:
        input_ids: (B, P + R).
        attention_mask: (B, P + R).
        responses: (B, R) token ids.
        mask: (B, R) True on response tokens.
        start: P - 1, the position whose output predicts the first response token.
        temperature: of the distribution that the responses were sampled from.
        allowed: for each row and token, the ids that could be sampled; None if all could.
        vocabulary: V, the number of token ids.
    """

    input_ids: Tensor
    attention_mask: Tensor
    responses: Tensor
    mask: Tensor
    start: int
    temperature: float = 1.0
    allowed: Sequence[Sequence[np.ndarray]] | None = None
    vocabulary: int = 0

    @property
    def untruncated(self) -> ResponseBatch:
        """The same batch, with the whole vocabulary in place of the tokens that could be sampled."""
        return replace(self, allowed=None)

    @cached_property
    def support(self) -> Tensor | None:
        """(B, R, V) True on the tokens that could be sampled; None if all could."""
        if self.allowed is None:
            return None
        support = torch.zeros(*self.mask.shape, self.vocabulary, dtype=torch.bool)
        for row, row_ids in zip(support, self.allowed, strict=True):
            for position, token_ids in zip(row, row_ids, strict=False):
                position[torch.from_numpy(token_ids)] = True
        return support.to(self.mask.device)


def response_batch(
    prompts: Sequence[list[int]], responses: Sequence[list[int]], pad_id: int, device: torch.device
) -> ResponseBatch:
    """Pad prompts and their responses into one batch on `device`."""
    prompt_ids, prompt_mask = collate_prompts(list(prompts), pad_id)
    tensors = [torch.tensor(response, dtype=torch.long) for response in responses]  # [] would be float
    response_ids = pad_sequence(tensors, batch_first=True, padding_value=pad_id)
    mask = pad_sequence([torch.ones_like(t, dtype=torch.bool) for t in tensors], batch_first=True)
    return ResponseBatch(
        torch.cat([prompt_ids, response_ids], 1).to(device),
        torch.cat([prompt_mask, mask.long()], 1).to(device),
        response_ids.to(device),
        mask.to(device),
        prompt_ids.shape[1] - 1,
    )


def response_statistics(
    model: RoleForward, role: str, batch: ResponseBatch, **options: Any
) -> TokenStatistics:
    """Statistics of `role` on the response tokens, in the distribution that they were sampled from.

    Args:
        options: what to compute beside log-probabilities (see `TokenQuery`).
    """
    query = TokenQuery(
        role,
        batch.input_ids,
        batch.attention_mask,
        start=batch.start,
        targets=batch.responses,
        temperature=batch.temperature,
        support=batch.support,
        **options,
    )
    statistics: TokenStatistics = model(query)
    return statistics


def response_logprobs(model: RoleForward, role: str, batch: ResponseBatch) -> Tensor:
    """Log-probability of each response token under `role`: (B, R), fp32."""
    return response_statistics(model, role, batch).logprobs


def response_kl(model: RoleForward, role: str, reference: str, batch: ResponseBatch) -> Tensor:
    """A sample of the KL of what `role` sampled to the full distribution of `reference`: (B,) nats, fp32."""
    logprobs = response_logprobs(model, role, batch)
    ref_logprobs = response_logprobs(model, reference, batch.untruncated)
    return torch.where(batch.mask, logprobs - ref_logprobs, 0.0).sum(1)


def state_values(model: RoleForward, role: str, batch: ResponseBatch) -> Tensor:
    """Scalar of `role` before the first response token and after each of them: (B, R + 1), fp32."""
    values: Tensor = model(ScalarQuery(role, batch.input_ids, batch.attention_mask, start=batch.start))
    return values


def sequence_scores(model: RoleForward, role: str, batch: ResponseBatch, pooling: Pooling = "last") -> Tensor:
    """Scalar of `role` on the last response token, found by the mask, or its mean over them: (B,), fp32."""
    return pooled(state_values(model, role, batch), batch, pooling)


def pooled(values: Tensor, batch: ResponseBatch, pooling: Pooling) -> Tensor:
    """One scalar of those on the response tokens: (B,).

    A head is affine, so the mean of its scalars is its scalar of the mean hidden state. An empty response has
    the scalar of the prompt's last token.

    Args:
        values: (B, R + 1) before the first response token and after each of them.
    """
    lengths = batch.mask.sum(1, keepdim=True)
    last = values.gather(1, lengths).squeeze(1)
    if pooling == "last":
        return last
    sums = values[:, 1:].masked_fill(~batch.mask, 0.0).sum(1)
    return torch.where(lengths.squeeze(1) > 0, sums / lengths.squeeze(1).clamp(min=1), last)
