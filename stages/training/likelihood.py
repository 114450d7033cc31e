"""The likelihood of demonstrations under the policy: SFT maximises it, and PPO-ptx mixes it in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from data.batches import collate, pack, tokenize
from stages.models.queries import TokenQuery
from stages.models.role_models import RoleForward
from stages.models.roles import Role
from stages.models.token_statistics import TokenStatistics

Example = tokenize.Demonstration | pack.PackedSequence


def sequence_length(example: Example) -> int:
    """Number of tokens of prompt and completion."""
    if isinstance(example, pack.PackedSequence):
        return len(example.input_ids)
    return len(example.prompt_ids) + len(example.completion_ids)


def completion_tokens(example: Example) -> int:
    """Number of learned tokens, over which the loss is averaged."""
    return sum(example.completion_mask)


def completion_logprobs(
    model: RoleForward,
    examples: Sequence[Example],
    pad_id: int,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the policy, from the first completion token of the batch on.

    Returns:
        Log-probabilities in nats, 1.0 on tokens that are the likeliest choice, and the mask of completion
        tokens: each (B, T - start - 1), `start` being the position before the first completion token.
    """
    batch = _collate(examples, pad_id).to(device)
    position_ids = batch.position_ids if isinstance(batch, collate.PackedBatch) else None
    start = max(int(batch.completion_mask.any(0).int().argmax()) - 1, 0)
    query = TokenQuery(
        Role.POLICY,
        batch.input_ids,
        batch.attention_mask,
        position_ids,
        start,
        targets=batch.input_ids[:, start + 1 :],
        is_top1=True,
    )
    statistics: TokenStatistics = model(query)
    return statistics.logprobs, statistics.is_top1.float(), batch.completion_mask[:, start + 1 :]


def _collate(examples: Sequence[Example], pad_id: int) -> collate.Batch | collate.PackedBatch:
    if isinstance(examples[0], pack.PackedSequence):
        return collate.packed(examples, pad_id)  # type: ignore[arg-type]
    return collate.demonstrations(examples, pad_id)  # type: ignore[arg-type]
