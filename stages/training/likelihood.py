"""The likelihood of demonstrations under the policy: what SFT minimises, and PPO-ptx mixes in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from data.batches import collate, pack, tokenize
from stages.models.role_models import RoleForward
from stages.models.token_statistics import TokenQuery

ROLE = "policy"
Example = tokenize.Demonstration | pack.Packed


def length(example: Example) -> int:
    """Tokens of prompt and completion."""
    if isinstance(example, pack.Packed):
        return len(example.input_ids)
    return len(example.prompt_ids) + len(example.completion_ids)


def targets(example: Example) -> int:
    """Completion tokens, those that the loss is a mean over."""
    return sum(example.completion_mask) if isinstance(example, pack.Packed) else len(example.completion_ids)


def forward(
    model: RoleForward,
    examples: Sequence[Example],
    pad_id: int,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the tokens that follow each position, from the first completion on.

    Returns:
        Log-probabilities, whether each token is the likeliest one (0 or 1), and the mask of completion
        tokens, each (B, T - start) where `start` is the position before the first completion token.
    """
    batch = _collate(examples, pad_id).to(device)
    position_ids = batch.position_ids if isinstance(batch, collate.PackedBatch) else None
    start = max(int(batch.completion_mask.any(0).int().argmax()) - 1, 0)
    targets = batch.input_ids[:, start + 1 :]
    wanted = TokenQuery(is_top1=True)
    figures = model(ROLE, batch.input_ids, batch.attention_mask, position_ids, start, targets, wanted)
    return figures.logprobs, figures.is_top1.float(), batch.completion_mask[:, start + 1 :]


def _collate(examples: Sequence[Example], pad_id: int) -> collate.Batch | collate.PackedBatch:
    if isinstance(examples[0], pack.Packed):
        return collate.packed(examples, pad_id)  # type: ignore[arg-type]
    return collate.sequences([(each.prompt_ids, each.completion_ids) for each in examples], pad_id)  # type: ignore[union-attr]
