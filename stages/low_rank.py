"""LoRA's product, added to its base layer's output in one pass over it.

PEFT copies the output of a quantized layer, makes the product in another tensor of that size, scales it into
a third and adds the two into a fourth: memory traffic that a CPU waits for.
"""

from __future__ import annotations

from typing import Any

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


def add_in_one_pass(layer: LoraLayer) -> None:
    """Have `layer` compute x W^T + scaling * (x A^T) B^T in place of its output, wherever PEFT's forward does
    no more than that (Hu et al. 2021, equation 3); elsewhere PEFT's goes on."""
    peft_forward = layer.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        role = layer.active_adapters[0]
        if not _is_plain(layer, role, x):
            output: Tensor = peft_forward(x, *args, **kwargs)
            return output
        # As rows, since a view that is changed in place costs autograd a copy.
        rows = x.flatten(0, -2)
        output = layer.get_base_layer()(rows, *args, **kwargs)
        output.addmm_(layer.lora_A[role](rows), layer.lora_B[role].weight.t(), alpha=layer.scaling[role])
        return output.unflatten(0, x.shape[:-1])

    layer.forward = forward


def _is_plain(layer: Any, role: str, x: Tensor) -> bool:
    """Whether the adapter is no more than A and B, whole on this rank and in the dtype of `x`."""
    if layer.disable_adapters or layer.merged or role not in layer.lora_A:
        return False
    dropout = layer.lora_dropout[role]
    b = layer.lora_B[role]
    return (
        isinstance(layer.get_base_layer(), nn.Linear)
        and role not in layer.lora_variant
        and b.bias is None
        and (isinstance(dropout, nn.Identity) or dropout.p == 0 or not dropout.training)
        and b.weight.dtype == x.dtype
        and "ds_status" not in vars(b.weight)  # ZeRO-3 gathers what a module's own forward uses
    )
