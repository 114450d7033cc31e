"""What a language-model role says of given tokens: log-probability, entropy, whether it is the likeliest.

Logits of the whole vocabulary are the largest tensors of a training step, (B, T, V), so they are made and
used a tile at a time, forward and backward (TRL's kernel).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

from stages.distributed.zero3 import whole

# Of the vocabulary. A CPU goes over a tile many times, and waits where its caches do not hold it.
TILE, CPU_TILE = 8_192, 1_024
SCALED = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


@dataclass(frozen=True)
class TokenQuery:
    """What is asked of each token, beside its log-probability.

    Attributes:
        entropy: the entropy of the distribution it was one choice of, in nats.
        is_top1: whether it is the likeliest choice.
        values: the scalar head of this name on the same hidden states, one position further than the tokens.
        detach_values: the trunk does not learn from the values.
        temperature: logits are divided by this.
        support: (B, R, V) True on the tokens that could be chosen; None for all.
    """

    entropy: bool = False
    is_top1: bool = False
    values: str | None = None
    detach_values: bool = False
    temperature: float = 1.0
    support: Tensor | None = None


class TokenStatistics(NamedTuple):
    """`logprobs`, `entropy`, `is_top1` are (B, R), `values` (B, R + 1); empty is what was not asked for."""

    logprobs: Tensor
    entropy: Tensor
    is_top1: Tensor
    values: Tensor


def token_statistics(
    causal: PreTrainedModel, hidden: Tensor, targets: Tensor, wanted: TokenQuery
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability, entropy and is-top-1 of `targets` (B, R) after the hidden states (B, R, H), fp32."""
    head = causal.get_output_embeddings()
    tiles = type(head) is nn.Linear and wanted.support is None
    figures = _by_tiles if tiles else _at_once
    return figures(causal, head, hidden, targets, wanted)


def can_read_hidden_states(causal: PreTrainedModel) -> bool:
    """Whether logits are what the LM head says of hidden states, softcapped or not, but not scaled."""
    config = causal.config.get_text_config()
    return all(getattr(config, name, None) is None for name in SCALED)


def _by_tiles(
    causal: PreTrainedModel, head: nn.Linear, hidden: Tensor, targets: Tensor, wanted: TokenQuery
) -> tuple[Tensor, Tensor, Tensor]:
    flags = {"entropy": wanted.entropy, "is_top1": wanted.is_top1}
    with whole(head.weight, head.bias):
        logprobs, entropy, _, _, is_top1 = Chunked.apply(
            hidden.reshape(-1, hidden.shape[-1]),
            head.weight,
            head.bias,
            targets.reshape(-1),
            wanted.temperature,
            CPU_TILE if hidden.device.type == "cpu" else TILE,
            _softcap(causal),
            1.0,
            tuple(name for name, flag in flags.items() if flag),
        )
    return (
        logprobs.view(targets.shape),
        entropy.view(targets.shape) if wanted.entropy else torch.empty(0),
        is_top1.view(targets.shape) if wanted.is_top1 else torch.empty(0),
    )


def _at_once(
    causal: PreTrainedModel, head: nn.Module, hidden: Tensor, targets: Tensor, wanted: TokenQuery
) -> tuple[Tensor, Tensor, Tensor]:
    logits = head(hidden)
    if cap := _softcap(causal):
        logits = cap * torch.tanh(logits / cap)
    return statistics_of_logits(logits, targets, wanted)


def statistics_of_logits(
    logits: Tensor, targets: Tensor, wanted: TokenQuery
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of logits (B, R, V)."""
    logits = logits.float() / wanted.temperature
    if wanted.support is not None:
        logits = logits.masked_fill(~wanted.support, torch.finfo(logits.dtype).min)
    return (
        selective_log_softmax(logits, targets),
        entropy_from_logits(logits) if wanted.entropy else torch.empty(0),
        logits.detach().argmax(-1) == targets if wanted.is_top1 else torch.empty(0),
    )


def _softcap(causal: PreTrainedModel) -> float | None:
    cap: float | None = getattr(causal.config.get_text_config(), "final_logit_softcapping", None)
    return cap


class Chunked(ChunkedLogProbFunction):
    """TRL's function, whose backward gathers a sharded head only where transformers set up ZeRO-3 itself."""

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        _, weight, bias, *_ = ctx.saved_tensors
        with whole(weight, bias):
            return ChunkedLogProbFunction.backward(ctx, *gradients)
