"""Parameters that ZeRO-3 shards over ranks (Rajbhandari et al. 2020): how code reads and writes whole ones.

Without ZeRO-3, every parameter is whole, and these functions do nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import deepspeed
import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn

from stages.internals.bitsandbytes import dequantized_4bit
from stages.internals.deepspeed import is_partitioned, is_sharded_now


def gather_again_in_backward(model: nn.Module) -> None:
    """Make the frozen 4-bit layers of a sharded `model` gather their weights again in backward.

    bitsandbytes' own product keeps the gathered weight until backward. At the end of a forward, every rank
    would hold the whole base.
    """
    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.forward = partial(_linear_4bit, layer)


def _linear_4bit(layer: Linear4bit, x: Tensor) -> Tensor:
    output: Tensor = _Linear4bitFunction.apply(x, layer)
    return output


class _Linear4bitFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Linear4bit) -> Tensor:
        ctx.layer = layer
        output: Tensor = type(layer).forward(layer, x)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        weight = ctx.layer.weight
        with whole(weight):
            dequantized = dequantized_4bit(weight)
        return gradient @ dequantized.to(gradient.dtype), None


@contextlib.contextmanager
def whole(*parameters: Tensor | None) -> Iterator[None]:
    """Gather `parameters` whole on every rank, for reading only. Every rank must enter.

    Under ZeRO-3, changes are lost on exit. `None` stands for a bias that a layer does not have.
    """
    sharded = [parameter for parameter in parameters if parameter is not None and is_sharded_now(parameter)]
    with deepspeed.zero.GatheredParameters(sharded) if sharded else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def whole_for_writing(*parameters: nn.Parameter) -> Iterator[None]:
    """Gather `parameters` whole. On exit, each rank keeps its shard of rank 0's. Every rank must enter."""
    # Not only shards: a small parameter that every rank holds has a shard beside it, which must follow.
    managed = [parameter for parameter in parameters if is_partitioned(parameter)]
    gathered = deepspeed.zero.GatheredParameters(managed, modifier_rank=0)
    with gathered if managed else contextlib.nullcontext():
        yield
