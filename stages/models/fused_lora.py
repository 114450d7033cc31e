"""LoRA's product, added to its base layer's output in one pass over it.

PEFT copies the output of a quantized layer, makes the product in another tensor of that size, scales it into
a third and adds the two into a fourth: memory traffic that a CPU waits for. Over bf16 activations it also
keeps an fp32 copy of every layer's input for backward. Here A and B are rounded to the dtype of activations
for the product, as under autocast; their gradients and updates are fp32.
"""

from __future__ import annotations

from typing import Any

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from stages.internals.deepspeed import is_partitioned
from stages.internals.peft import is_plain_lora


def add_in_one_pass(layer: LoraLayer) -> None:
    """Have `layer` compute x W^T + scaling * (x A^T) B^T in place of its output, wherever PEFT's forward does
    no more than that (Hu et al. 2021, equation 3); elsewhere PEFT's goes on."""
    peft_forward = layer.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        role = layer.active_adapters[0]
        if not _is_plain(layer, role):
            output: Tensor = peft_forward(x, *args, **kwargs)
            return output
        # As rows, since a view that is changed in place costs autograd a copy.
        rows = x.flatten(0, -2)
        output = layer.get_base_layer()(rows, *args, **kwargs)
        a, b = (each[role].weight.to(rows.dtype) for each in (layer.lora_A, layer.lora_B))
        output.addmm_(rows @ a.t(), b.t(), alpha=layer.scaling[role])
        return output.unflatten(0, x.shape[:-1])

    layer.forward = forward


def _is_plain(layer: Any, role: str) -> bool:
    """Whether the adapter is no more than A and B, whole on this rank."""
    if layer.disable_adapters or layer.merged or role not in layer.lora_A:
        return False
    dropout = layer.lora_dropout[role]
    b = layer.lora_B[role]
    return (
        isinstance(layer.get_base_layer(), nn.Linear)
        and is_plain_lora(layer, role)
        and b.bias is None
        and (isinstance(dropout, nn.Identity) or dropout.p == 0 or not dropout.training)
        and not is_partitioned(b.weight)  # ZeRO-3 gathers what a module's own forward uses
    )
