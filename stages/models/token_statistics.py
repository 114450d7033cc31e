"""Statistics of target tokens under a role with the LM head: log-probability, entropy, top-1.

Logits over the vocabulary, (B, T, V), would be the largest tensor of a training step. TRL's kernel computes
them in tiles of the vocabulary, forward and backward.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stages.distributed.zero3 import whole
from stages.internals.trl import (
    ChunkedLogProbFunction,
    entropy_from_logits,
    saved_head,
    selective_log_softmax,
)
from stages.models.queries import TokenQuery

# Tokens of the vocabulary in a tile. A CPU reads a tile many times, so its caches should hold it.
TILE, CPU_TILE = 8_192, 1_024
SCALED = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


class TokenStatistics(NamedTuple):
    """`logprobs`, `entropy`, `is_top1`: (B, R); `values`: (B, R + 1); (0,) if not selected."""

    logprobs: Tensor
    entropy: Tensor
    is_top1: Tensor
    values: Tensor


def statistics_of_hidden_states(
    causal: PreTrainedModel, hidden: Tensor, query: TokenQuery
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability, entropy and is-top-1 of the targets (B, R), from the hidden states before them.

    Args:
        hidden: (B, R, H) last hidden states.

    Returns:
        (B, R) each, or (0,) if the query does not select it. The first two are fp32, the third is bool.
    """
    head = causal.get_output_embeddings()
    by_tiles = type(head) is nn.Linear and query.support is None
    compute = _by_tiles if by_tiles else _at_once
    return compute(causal, head, hidden, query)


def can_read_hidden_states(causal: PreTrainedModel) -> bool:
    """Whether logits are the LM head of hidden states, softcapped or not, but not scaled."""
    config = causal.config.get_text_config()
    return all(getattr(config, name, None) is None for name in SCALED)


def _by_tiles(
    causal: PreTrainedModel, head: nn.Linear, hidden: Tensor, query: TokenQuery
) -> tuple[Tensor, Tensor, Tensor]:
    flags = {"entropy": query.entropy, "is_top1": query.is_top1}
    with whole(head.weight, head.bias):
        logprobs, entropy, _, _, is_top1 = ShardedLogProb.apply(
            hidden.reshape(-1, hidden.shape[-1]),
            head.weight,
            head.bias,
            query.targets.reshape(-1),
            query.temperature,
            CPU_TILE if hidden.device.type == "cpu" else TILE,
            _softcap(causal),
            1.0,
            tuple(name for name, flag in flags.items() if flag),
        )
    return (
        logprobs.view(query.targets.shape),
        entropy.view(query.targets.shape) if query.entropy else torch.empty(0),
        is_top1.view(query.targets.shape) if query.is_top1 else torch.empty(0),
    )


def _at_once(
    causal: PreTrainedModel, head: nn.Module, hidden: Tensor, query: TokenQuery
) -> tuple[Tensor, Tensor, Tensor]:
    logits = head(hidden)
    if cap := _softcap(causal):
        logits = cap * torch.tanh(logits / cap)
    return statistics_of_logits(logits, query)


def statistics_of_logits(logits: Tensor, query: TokenQuery) -> tuple[Tensor, Tensor, Tensor]:
    """As `statistics_of_hidden_states`, from logits (B, R, V)."""
    logits = logits.float() / query.temperature
    if query.support is not None:
        logits = logits.masked_fill(~query.support, torch.finfo(logits.dtype).min)
    return (
        selective_log_softmax(logits, query.targets),
        entropy_from_logits(logits) if query.entropy else torch.empty(0),
        logits.detach().argmax(-1) == query.targets if query.is_top1 else torch.empty(0),
    )


def _softcap(causal: PreTrainedModel) -> float | None:
    cap: float | None = getattr(causal.config.get_text_config(), "final_logit_softcapping", None)
    return cap


class ShardedLogProb(ChunkedLogProbFunction):
    """TRL's function. Its backward gathers a sharded head only if transformers set up ZeRO-3 itself."""

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        with whole(*saved_head(ctx)):
            return ChunkedLogProbFunction.backward(ctx, *gradients)
