"""Private interfaces of bitsandbytes."""

from __future__ import annotations

from typing import Any

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
