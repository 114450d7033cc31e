"""Private interfaces of TRL: what its trainers share, which no page of its documentation has."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import (
    compute_flops_per_token,
    disable_dropout_in_model,
    entropy_from_logits,
    selective_log_softmax,
)

__all__ = [
    "ChunkedLogProbFunction",
    "compute_flops_per_token",
    "disable_dropout_in_model",
    "entropy_from_logits",
    "saved_head",
    "selective_log_softmax",
]


def saved_head(ctx: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the LM head as `ChunkedLogProbFunction` saves them for its backward.

    Under ZeRO-3 they are shards by then, and the backward has no other way to them.
    """
    _, weight, bias, *_ = ctx.saved_tensors
    return weight, bias
