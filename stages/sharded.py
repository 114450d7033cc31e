"""4-bit layers under ZeRO-3: backward gathers a weight again, rather than have forward keep it whole."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn

from stages.token_figures import whole


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
            dequantized: Tensor = dequantize_4bit(weight.data.view(-1, 1), weight.quant_state)
        return gradient @ dequantized.to(gradient.dtype), None
