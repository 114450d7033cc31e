"""Checks of an adapter's config.json and tensors: a role uses all that they say, or they are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from peft import LoraConfig
from safetensors import safe_open

from configs.unique_keys import DuplicateKey, unique_keys
from data.storage.adapter_names import CONFIG_FILE
from stages.models.base_files import non_finite, number_fault

MAX_ALPHA = 1e9  # as in the experiment's schema


class Allowed(NamedTuple):
    """What a key may hold: a test of its value, and the same in words."""

    holds: Callable[[Any], bool]
    words: str


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_index(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_list(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(holds, value))


BOOLEAN = Allowed(lambda value: isinstance(value, bool), "true or false")
TEXT = Allowed(lambda value: value is None or isinstance(value, str), "text or null")
NAMES = Allowed(
    lambda value: value in (None, "") or _is_text(value) or _is_list(value, _is_text),
    "a pattern, a list of names, or null",
)
# What a role does as PEFT does it. PEFT takes "no" for true and true for 1.
USED = {
    "r": Allowed(lambda value: type(value) is int and value > 0, "a whole number above 0"),
    "lora_alpha": Allowed(
        lambda value: _is_number(value) and 0 < value <= MAX_ALPHA,
        f"a number above 0 and at most {MAX_ALPHA:g}",
    ),
    "use_rslora": BOOLEAN,
    "use_dora": BOOLEAN,
    "lora_dropout": Allowed(
        lambda value: _is_number(value) and 0 <= value < 1, "a number at least 0 and below 1"
    ),
    "target_modules": Allowed(
        lambda value: _is_text(value) or (_is_list(value, _is_text) and len(value) > 0),
        "a pattern or a list of names",
    ),
    "exclude_modules": NAMES,
    "layers_to_transform": Allowed(
        lambda value: value is None or _is_index(value) or _is_list(value, _is_index),
        "the number of a layer, a list of them, or null",
    ),
    "layers_pattern": NAMES,
    "fan_in_fan_out": BOOLEAN,
    # Others, such as PiSSA, change the weights of the base, which the roles share.
    "init_lora_weights": Allowed(
        lambda value: isinstance(value, bool) or value in ("gaussian", "orthogonal"),
        "true, false, gaussian or orthogonal: others change the base; convert the adapter to plain LoRA",
    ),
    "task_type": Allowed(lambda value: value in ("CAUSAL_LM", None), "CAUSAL_LM or null"),
    "inference_mode": BOOLEAN,
    "peft_type": Allowed(lambda value: value == "LORA", "LORA"),
    # What only describes the adapter.
    "peft_version": TEXT,
    "base_model_name_or_path": TEXT,
    "revision": TEXT,
    "auto_mapping": Allowed(lambda value: value is None or isinstance(value, dict), "an object or null"),
}
REQUIRED = ("peft_type", "target_modules")
# Runs PEFT's matches of patterns with names, in at most so many seconds of a CPU.
CPU_SECONDS = 2
MATCH = """
import json, re, resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for name in names:
        re.match(pattern, name)
"""


def config_fault(folder: Path, modules: Sequence[str]) -> str | None:
    """Why a role cannot be what the adapter's config says; None if it can, or if PEFT will refuse it.

    Args:
        modules: names of the base's modules, from which the config chooses.
    """
    try:
        text = (folder / CONFIG_FILE).read_text(encoding="utf-8")
        config = json.loads(text, object_pairs_hook=unique_keys)
    except DuplicateKey as error:
        return f"{CONFIG_FILE}: {error.key:.60} is given twice"
    except (ValueError, RecursionError):
        return None
    faults = _config_faults(config, modules) if isinstance(config, dict) else iter(())
    return next((f"{CONFIG_FILE}: {fault}" for fault in faults), None)


def _config_faults(config: Mapping[str, Any], modules: Sequence[str]) -> Iterator[str]:
    yield from non_finite(config)
    for key, allowed in USED.items():
        if (key in config or key in REQUIRED) and not allowed.holds(config.get(key)):
            yield f"{key} is {config.get(key)!r:.60}, and must be {allowed.words}"
    defaults = LoraConfig().to_dict()
    for key in sorted(config.keys() - USED.keys()):
        value = config[key]
        if value != defaults.get(key) and not (key not in defaults and not value):
            yield f"{key} is {value!r:.60}, and a role has no such thing"
    for key in ("target_modules", "exclude_modules", "layers_pattern"):
        patterns = _patterns(key, config.get(key))
        if patterns and _is_slow(patterns, modules):
            yield f"{key} is {config[key]!r:.60}, and matching it takes too long; write a list of names"


def _patterns(key: str, value: Any) -> list[str]:
    """The regular expressions that PEFT makes of a key. It compares the names of a list as they are."""
    if key == "layers_pattern":
        texts = [value] if isinstance(value, str) else value or []
        return [rf"(?:^|.*?\.){text}\.(?P<idx>\d+)\." for text in texts]
    return [rf"(?:{value})\Z"] if value and isinstance(value, str) else []


def _is_slow(patterns: Sequence[str], names: Sequence[str]) -> bool:
    """Whether matching takes more than `CPU_SECONDS`. A pattern such as (a+)+ can take years."""
    command = [sys.executable, "-I", "-c", MATCH, str(CPU_SECONDS)]
    done = subprocess.run(command, input=json.dumps([patterns, names]), capture_output=True, text=True)
    return done.returncode < 0  # the kernel ended it; PEFT itself refuses what is no pattern


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
