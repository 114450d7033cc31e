"""Checks of a base's files before transformers reads them: its weights, and the JSON that leads to them.

transformers follows an index wherever it points, adds an adapter that lies beside the base, and loads weights
of any value. These checks turn each case into a UserError that names the file and the key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from configs.schema import Base
from configs.unique_keys import DuplicateKey, unique_keys
from data.storage.adapter_names import CONFIG_FILE
from data.storage.file_cache import cached
from stages.internals.transformers import find_file
from stages.models.base_checks import BUFFERS, loading, unusable

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MOST_LAYERS = 10_000  # transformers builds as many as config.json says, before it looks at the weights
INFINITE = {"time_step_limit"}  # of Mamba 2, whose upper limit may be infinite


def check_files(config: Base, source: str) -> None:
    """Check the JSON files of the base in `source`, a folder or hub id.

    Raises:
        UserError: an adapter lies beside the base, its index names files that are not its own safetensors, or
            its config.json has a number or a quantization that cannot be loaded.
    """
    with loading(config, "files"):
        if find_file(source, CONFIG_FILE, config.revision):
            raise unusable(
                config,
                "an adapter_config.json lies beside the base, and transformers would add that adapter to it; "
                "merge the adapter into the base, or move it to a folder of its own",
            )
        for name in _shards(config, source):
            if not name.endswith(".safetensors"):
                raise unusable(config, f"{INDEX} names {name!r}, which is not safetensors and may run code")
            if Path(name).name != name:
                raise unusable(config, f"{INDEX} names {name!r}, which is not in the folder of the base")
        for name in ("tokenizer_config.json", "tokenizer.json", "generation_config.json"):
            _json(config, source, name)
        _check_config(config, _json(config, source, "config.json"))


def _check_config(config: Base, tree: dict[str, Any]) -> None:
    if faults := list(non_finite(tree)):
        raise unusable(config, f"config.json: {faults[0]}; restore the file")
    layers = tree.get("num_hidden_layers")
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise unusable(config, f"config.json: num_hidden_layers is {layers}; restore the file")
    if "transformers_weights" in tree:
        reason = f"transformers_weights names other weights; remove the key and name them {WEIGHTS}"
        raise unusable(config, f"config.json: {reason}")
    for section in (tree, tree.get("text_config")):
        quantization = _quantization(section)
        if quantization not in (None, config.quantization):
            raise unusable(
                config,
                f"config.json: quantization_config says {quantization}, but {config.key}.quantization is "
                f"{config.quantization}; give the weights in full precision",
            )


def non_finite(tree: Any, key: str = "") -> Iterator[str]:
    """Each number of a JSON tree that is NaN or infinite, as `key is value`."""
    if isinstance(tree, float) and not math.isfinite(tree):
        if math.isnan(tree) or key.split("[")[0] not in INFINITE:
            yield f"{key} is {tree}"
    elif isinstance(tree, dict):
        for name, value in tree.items():
            yield from non_finite(value, f"{key}.{name}".lstrip("."))
    elif isinstance(tree, list):
        for position, value in enumerate(tree):
            yield from non_finite(value, f"{key}[{position}]")


def _quantization(section: Any) -> str | None:
    """How the weights of a config.json are quantized, in the words of `base.quantization`; None for not."""
    keys = ("quantization_config", "compression_config") if isinstance(section, dict) else ()
    entry = next((section[key] for key in keys if section.get(key) is not None), None)
    if entry is None:
        return None
    if not isinstance(entry, dict):
        return f"{entry!r:.40}"
    if entry.get("load_in_8bit"):
        return "int8"
    if entry.get("load_in_4bit"):
        return str(entry.get("bnb_4bit_quant_type", "fp4"))
    return f"{entry.get('quant_method')!r:.40}"


def check_weights(config: Base, source: str) -> None:
    """Read every weight of the base in `source` once; the result is cached for each version of a file.

    Raises:
        UserError: a weight is NaN, infinite, all zero or of integers.
    """
    with loading(config, "weights"):
        packed = _quantization(_json(config, source, "config.json")) is not None
        rule = "weights of packed integers" if packed else "weights"
        for file in weight_files(config, source):
            if fault := cached(file, rule, lambda path: _first_fault(path, packed)):
                raise unusable(config, f"{file}: {fault}; restore the file")


def weight_files(config: Base, source: str) -> list[Path]:
    """The safetensors files of the base in `source`, a folder or hub id."""
    whole = find_file(source, WEIGHTS, config.revision)
    names = [WEIGHTS] if whole else _shards(config, source)
    return [file for name in names if (file := find_file(source, name, config.revision))]


def _first_fault(file: Path, packed: bool) -> str:
    """What is wrong with the first bad weight of a safetensors file, or ""."""
    with safe_open(file, "pt") as weights:
        names = weights.keys()
        for name in names:
            fault = "" if packed or BUFFERS.search(name) else weight_fault(weights.get_tensor(name))
            if fault:
                return f"{name} {fault}"
    return ""


def weight_fault(weight: Tensor) -> str:
    """Why `weight` cannot be of a model that was trained, or ""."""
    # A bias, and the offset of a norm, may be zero. A matrix of zeros lets nothing through.
    zero = weight.dim() > 1 and weight.numel() > 0 and not weight.any()
    return number_fault(weight) or ("is all zero" if zero else "")


def number_fault(weight: Tensor) -> str:
    """Why nothing can be computed with `weight`, or ""."""
    if not weight.is_floating_point():
        return f"holds integers ({weight.dtype})"
    if not weight.numel():
        return ""
    # Two numbers of one pass show it: NaN spreads. aminmax has no 8-bit floats.
    low, high = (weight.float() if weight.itemsize == 1 else weight).aminmax()
    return "" if low.isfinite() and high.isfinite() else "holds NaN or infinity"


def _shards(config: Base, source: str) -> list[str]:
    """The files that the index of the base names; none without an index."""
    weight_map = _json(config, source, INDEX).get("weight_map", {})
    if not isinstance(weight_map, dict):
        raise unusable(config, f"{INDEX}: weight_map must map weights to files")
    return sorted({str(name) for name in weight_map.values()})


def _json(config: Base, source: str, name: str) -> dict[str, Any]:
    """The object in the file `name` of the base; {} if there is none, or if transformers will refuse it.

    Raises:
        UserError: a key is given twice.
    """
    file = find_file(source, name, config.revision)
    try:
        text = "{}" if file is None else file.read_text(encoding="utf-8")
        tree = json.loads(text, object_pairs_hook=unique_keys)
    except DuplicateKey as error:
        raise unusable(config, f"{name}: {error}; restore the file") from None
    except (ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}
