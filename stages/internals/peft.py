"""Private interfaces of PEFT."""

from __future__ import annotations

from peft.tuners.lora import LoraLayer


def activate_adapter(layer: LoraLayer, name: str | None) -> None:
    """Let the layer's next forward use the adapter `name`, or none.

    The public `set_adapter` also changes `requires_grad`, which would unfreeze frozen adapters.
    """
    layer._disable_adapters = name is None
    layer._active_adapter = [name]


def is_plain_lora(layer: LoraLayer, name: str) -> bool:
    """Whether the adapter has no variant, such as DoRA, that has another formula."""
    return name not in layer.lora_variant
