"""Checks of an adapter's config.json and tensors: a role uses all that they say, or they are refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors import safe_open

from stages.models.base_files import non_finite, number_fault

CONFIG = "adapter_config.json"
# What a role does as PEFT does it, and what only describes the adapter.
USED = {"r", "lora_alpha", "use_rslora", "lora_dropout", "target_modules", "exclude_modules"}
USED |= {"layers_to_transform", "layers_pattern", "fan_in_fan_out", "init_lora_weights"}
USED |= {"task_type", "inference_mode"}
DESCRIPTION = {"peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"}
# Others, such as PiSSA, change the weights of the base, which the roles share.
INITIAL = (True, False, "gaussian", "orthogonal")
TASKS = ("CAUSAL_LM", None)


def config_fault(folder: Path) -> str | None:
    """Why a role cannot be what the adapter's config says; None if it can, or if PEFT will refuse it."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    faults = _config_faults(config) if isinstance(config, dict) else iter(())
    return next((f"{CONFIG}: {fault}" for fault in faults), None)


def _config_faults(config: Mapping[str, Any]) -> Iterator[str]:
    yield from non_finite(config)
    for key in ("r", "lora_alpha"):
        value = config.get(key, 1)
        if isinstance(value, int | float) and value <= 0:
            yield f"{key} is {value}, so that the adapter changes nothing"
    if config.get("peft_type") != "LORA":
        yield f"peft_type is {config.get('peft_type')!r:.40}, and a role is LORA"
    dropout = config.get("lora_dropout", 0)
    if isinstance(dropout, int | float) and not 0 <= dropout < 1:
        yield f"lora_dropout is {dropout}, and must be at least 0 and below 1"
    if config.get("init_lora_weights", True) not in INITIAL:
        value = config["init_lora_weights"]
        yield f"init_lora_weights is {value!r:.40}, which changes the base; convert the adapter to plain LoRA"
    if config.get("task_type") not in TASKS:
        yield f"task_type is {config['task_type']!r:.40}, and a role is CAUSAL_LM"
    defaults = LoraConfig().to_dict()
    for key in sorted(config.keys() - USED - DESCRIPTION):
        value = config[key]
        if value != defaults.get(key) and not (key not in defaults and not value):
            yield f"{key} is {value!r:.60}, and a role has no such thing"


def tensor_fault(folder: Path, file: str, expected: Iterable[str]) -> str | None:
    """What is wrong with the tensors of a file that should be called `expected`; None if nothing is."""
    with safe_open(folder / file, "pt") as tensors:
        names, expected_names = set(tensors.keys()), set(expected)
        if len(names) != len(expected_names):
            return f"it holds {len(names)} weights, but on this base it would have {len(expected_names)}"
        if foreign := sorted(names - expected_names):
            return f"{file} holds {foreign[0]:.200}, where this base would have {min(expected_names - names)}"
        for name in sorted(names):
            if fault := number_fault(tensors.get_tensor(name)):
                return f"{file}: {name} {fault}"
    return None
