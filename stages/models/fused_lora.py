"""LoRA's product, added in place to the output of its base layer.

PEFT makes four tensors of the output's size: a copy of a quantized layer's output, the product, the scaled
product, and the sum. A CPU waits for this memory traffic. Over bf16 activations, PEFT also keeps an fp32 copy
of every layer's input for backward. Here, A and B are rounded to the dtype of activations for the product, as
under autocast. Their gradients and updates are fp32.

The rows of a batch may also use different adapters (`RowAdapters`), each by the same formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from stages.internals.deepspeed import is_partitioned
from stages.internals.peft import is_plain_lora


class RowAdapters:
    """Which rows of the next batches use which adapter.

    Attributes:
        rows: of each adapter, the indices of its rows; all other rows use none. None: all rows use the active
            adapter.
    """

    def __init__(self) -> None:
        self.rows: dict[str, Tensor] | None = None

    def choose(self, names: Sequence[str | None], device: torch.device) -> None:
        """Let row i use the adapter `names[i]`."""
        self.rows = {
            name: torch.tensor([row for row, other in enumerate(names) if other == name], device=device)
            for name in dict.fromkeys(names)
            if name is not None
        }


def add_in_one_pass(layer: LoraLayer, of_rows: RowAdapters) -> None:
    """Make `layer` compute x W^T + scaling * (x A^T) B^T in place (Hu et al. 2021, equation 3).

    If PEFT's forward does more than that, for example dropout, PEFT's forward runs. If rows use different
    adapters, each must pass `can_mix`.
    """
    peft_forward = layer.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if of_rows.rows is not None:
            return _mixed(layer, of_rows.rows, x, *args, **kwargs)
        role = layer.active_adapters[0]
        if not _is_plain(layer, role):
            output: Tensor = peft_forward(x, *args, **kwargs)
            return output
        # As rows: autograd copies a view that is changed in place.
        rows = x.flatten(0, -2)
        output = layer.get_base_layer()(rows, *args, **kwargs)
        _add(layer, role, rows, output)
        return output.unflatten(0, x.shape[:-1])

    layer.forward = forward


def _mixed(layer: Any, of_rows: dict[str, Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The layer's output, (B, T, out), if rows of `x` (B, T, in) use different adapters; no gradients."""
    output: Tensor = layer.get_base_layer()(x, *args, **kwargs)
    for role, rows in of_rows.items():
        if role in layer.lora_A:
            part = output[rows].flatten(0, -2)
            _add(layer, role, x[rows].flatten(0, -2), part)
            output[rows] = part.unflatten(0, (len(rows), *x.shape[1:-1]))
    return output


def _add(layer: Any, role: str, x: Tensor, output: Tensor) -> None:
    """Add scaling * (x A^T) B^T to `output`, in place: (N, in) and (N, out)."""
    a, b = (factors[role].weight.to(x.dtype) for factors in (layer.lora_A, layer.lora_B))
    output.addmm_(x @ a.t(), b.t(), alpha=layer.scaling[role])


def can_mix(layer: LoraLayer, role: str) -> bool:
    """Whether other rows of a batch may use other adapters than `role`."""
    if role not in layer.scaling:
        return True  # it does not adapt this layer
    return role in layer.lora_A and _has_plain_factors(layer, role)


def _is_plain(layer: Any, role: str) -> bool:
    """Whether the layer's output is that of its base and of a plain adapter."""
    if layer.disable_adapters or layer.merged or role not in layer.lora_A:
        return False
    return _has_plain_factors(layer, role)


def _has_plain_factors(layer: Any, role: str) -> bool:
    """Whether the adapter is just A and B, and both are whole on this rank."""
    dropout = layer.lora_dropout[role]
    b = layer.lora_B[role]
    return (
        isinstance(layer.get_base_layer(), nn.Linear)
        and is_plain_lora(layer, role)
        and b.bias is None
        and (isinstance(dropout, nn.Identity) or dropout.p == 0 or not dropout.training)
        and not is_partitioned(b.weight)  # ZeRO-3 gathers what a module's own forward uses
    )
