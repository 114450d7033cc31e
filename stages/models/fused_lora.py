"""LoRA's product, added in place to the output of its base layer.

PEFT makes four tensors of the output's size: a copy of a quantized layer's output, the product, the scaled
product, and the sum. A CPU waits for this memory traffic. Over bf16 activations, PEFT also keeps an fp32 copy
of every layer's input for backward. Here, A and B are rounded to the dtype of activations for the product, as
under autocast. Their gradients and updates are fp32.
"""

from __future__ import annotations

from typing import Any

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from stages.internals.deepspeed import is_partitioned
from stages.internals.peft import is_plain_lora


def add_in_one_pass(layer: LoraLayer) -> None:
    """Make `layer` compute x W^T + scaling * (x A^T) B^T in place (Hu et al. 2021, equation 3).

    If PEFT's forward does more than that, for example dropout, PEFT's forward runs.
    """
    peft_forward = layer.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        role = layer.active_adapters[0]
        if not _is_plain(layer, role):
            output: Tensor = peft_forward(x, *args, **kwargs)
            return output
        # As rows: autograd copies a view that is changed in place.
        rows = x.flatten(0, -2)
        output = layer.get_base_layer()(rows, *args, **kwargs)
        a, b = (factors[role].weight.to(rows.dtype) for factors in (layer.lora_A, layer.lora_B))
        output.addmm_(rows @ a.t(), b.t(), alpha=layer.scaling[role])
        return output.unflatten(0, x.shape[:-1])

    layer.forward = forward


def _is_plain(layer: Any, role: str) -> bool:
    """Whether the adapter is just A and B, and both are whole on this rank."""
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
