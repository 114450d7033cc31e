"""Parameters that ZeRO-3 has sharded: whole when they are read, and gathered again in backward."""

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
from stages.internals.deepspeed import is_sharded_now


def gather_again(model: nn.Module) -> None:
    """Have the frozen 4-bit layers of `model`, which DeepSpeed has sharded, let go of weights after use.

    bitsandbytes' product holds the packed weight that it was given until backward, so that by the end of a
    forward every rank would hold the whole base.
    """
    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.forward = partial(_product, layer)


def _product(layer: Linear4bit, x: Tensor) -> Tensor:
    output: Tensor = _Product.apply(x, layer)
    return output


class _Product(torch.autograd.Function):
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
    """Within, parameters that ZeRO-3 has sharded are whole."""
    sharded = [each for each in parameters if each is not None and is_sharded_now(each)]
    with deepspeed.zero.GatheredParameters(sharded) if sharded else contextlib.nullcontext():
        yield
