"""Private interfaces of PEFT."""

from __future__ import annotations

from peft.tuners.adalora import AdaLoraLayer, AdaLoraModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # AdaLoRA's, of the importance of singular values


def activate_adapter(layer: LoraLayer, name: str | None) -> None:
    """Let the layer's next forward use the adapter `name`, or none.

    The public `set_adapter` also changes `requires_grad`, which would unfreeze frozen adapters.
    """
    layer._disable_adapters = name is None
    layer._active_adapter = [name]


def is_plain_lora(layer: LoraLayer, name: str) -> bool:
    """Whether the adapter has no variant, such as DoRA, that has another formula."""
    return name not in layer.lora_variant


def importance(model: AdaLoraModel) -> dict[str, dict[str, Tensor]]:
    """AdaLoRA's averages of importance, by parameter. To resume needs them, and PEFT does not save them."""
    return {average: getattr(model.rankallocator, average) for average in AVERAGES}


def adalora_scaling(layer: AdaLoraLayer, name: str) -> float:
    """What a forward of AdaLoRA multiplies its update by. It depends on the number of ranks that are left."""
    return float(layer.scaling[name] / (layer.ranknum[name] + 1e-5))
