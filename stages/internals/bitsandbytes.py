"""Private interfaces of bitsandbytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft.utils.integrations import dequantize_bnb_weight
from torch import Tensor, nn


def keep_packing(model: nn.Module) -> None:
    """Have 4-bit layers on CPUs keep their bytes as they were loaded.

    Otherwise the first forward without gradients repacks them in place: rounded scales, other bytes, and
    nothing that ZeRO-3 could gather again. No public switch exists.
    """
    for module in model.modules():
        if "support_avx512bf16_for_cpu" in vars(module):
            vars(module)["support_avx512bf16_for_cpu"] = False


def dequantized_4bit(weight: Any) -> Tensor:
    """A whole 4-bit weight as (out, in), in the dtype that it was quantized from.

    The layer has no public method for it.
    """
    values: Tensor = dequantize_4bit(weight.data.view(-1, 1), weight.quant_state)
    return values


def dequantized_weight(layer: Linear4bit | Linear8bitLt) -> Tensor:
    """The weight (out, in) of a quantized layer. An 8-bit layer keeps its scales in `state`."""
    values: Tensor = dequantize_bnb_weight(layer.weight, state=vars(layer).get("state"))
    return values


def multiply_4bit_by(product: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> None:
    """Have 4-bit layers on CPUs compute A W^T + bias by `product`, given A, the whole W (out, in) and bias.

    The operator and its ten parameters are bitsandbytes' own. No public switch chooses another product.
    """

    def gemm_4bit(
        A: Tensor,
        B: Tensor,
        shapeB: Sequence[int],
        absmax: Tensor,
        blocksize: int,
        quant_type: str,
        bias: Tensor | None = None,
        absmax_8bit: Tensor | None = None,
        absmax_code: Tensor | None = None,
        absmax_offset: Tensor | None = None,
    ) -> Tensor:
        """W is `B` dequantized (QLoRA, equations 5 and 6)."""
        ops = torch.ops.bitsandbytes
        if absmax_8bit is not None:
            outer = ops.dequantize_blockwise(absmax_8bit, absmax, absmax_code, 256, torch.float32)
            absmax = outer + absmax_offset
        return product(A, ops.dequantize_4bit(B, absmax, blocksize, quant_type, shapeB, A.dtype), bias)

    torch.library.register_kernel("bitsandbytes::gemm_4bit", "cpu", gemm_4bit)
