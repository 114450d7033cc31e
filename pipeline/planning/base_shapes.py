"""The sizes of a base, from its config.json and the headers of its safetensors. No weight is read.

A base of the hub that is not on this machine is asked for over the network: one file, and the sizes of the
others.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import requests
from huggingface_hub import HfApi, get_token, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from configs.regular_file import read_regular_file
from configs.schema import Base
from pipeline.planning.known_bases import KNOWN
from pipeline.planning.memory import BaseShape, Linear
from pipeline.planning.safetensors_headers import stored_tensors
from stages.models.embedded import cached_folder

MAX_JSON = 2**20  # of a config.json
SECONDS = 3.0  # for each answer of the hub
LARGEST = 2**24  # a larger size in a config.json is an error, which the stage's own checks name
UNGATED = ("gpt2", "gptj", "gpt_neo", "gpt_neox", "opt", "bloom", "phi", "falcon", "mpt", "starcoder2")
EMBEDDINGS = (
    "embed_tokens",
    "wte",
    "wpe",
    "embed_in",
    "word_embeddings",
    "embed_positions",
    "lm_head",
    "embed_out",
)


@dataclass(frozen=True)
class FoundBase:
    """What is known of a base before it is loaded.

    Attributes:
        shape: None if its config.json is not at hand, or describes no decoder-only transformer.
        download: bytes that are still to be fetched; None if unknown.
        why: why the shape or the download is not known.
        unseen: neither this machine nor the hub showed the base, so that nothing of it is checked.
    """

    shape: BaseShape | None
    download: int | None = 0
    why: str = ""
    unseen: bool = False


def find_base(base: Base) -> FoundBase:
    """Look for a base in the cache of embedded models, as a folder, in the hub's cache, and on the hub."""
    for folder in (cached_folder(base.model), Path(base.model), _hub_cache(base)):
        if folder is not None and (folder / "config.json").exists():
            return _in_folder(folder)
    found = FoundBase(None, None, f"{base.model} is not on this machine yet")
    if "/" in base.model and not os.path.isabs(base.model):
        found = _on_the_hub(base)
    if found.shape is None and base.model in KNOWN:
        return replace(_found(KNOWN[base.model], [], None), why=found.why, unseen=found.unseen)
    return found


def _in_folder(folder: Path) -> FoundBase:
    files = sorted(file for file in folder.glob("*.safetensors") if file.is_file())
    try:
        config = json.loads(read_regular_file(folder / "config.json", MAX_JSON))
        return _found(config, files, None if not files else 0)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ):  # damaged: a check says how
        return FoundBase(None, None, f"{folder} cannot be read")


def _hub_cache(base: Base) -> Path | None:
    try:
        file = try_to_load_from_cache(base.model, "config.json", revision=base.revision)
    except HFValidationError:  # it is no hub id
        return None
    return Path(file).parent if isinstance(file, str) else None


def _on_the_hub(base: Base) -> FoundBase:
    try:
        token = get_token()
        answer = requests.get(
            hf_hub_url(base.model, "config.json", revision=base.revision),
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=SECONDS,
        )
        answer.raise_for_status()
        info = HfApi().model_info(base.model, revision=base.revision, files_metadata=True, timeout=SECONDS)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        weights = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
        return _found(answer.json(), [], weights or None)
    except Exception as error:  # the hub's client raises those of several libraries
        status = getattr(getattr(error, "response", None), "status_code", None)
        refused = status in (401, 403, 404)
        why = f"the hub has no {base.model} that you may read" if refused else "the hub did not answer"
        return FoundBase(None, None, why, unseen=True)


def _found(config: Mapping[str, Any], files: list[Path], download: int | None) -> FoundBase:
    """`download`: None to count two bytes for each parameter, as most models are published in bf16."""
    shape = shape_of(config, dict(stored_tensors(files)))
    if shape is None:
        return FoundBase(None, download, "its config.json has other keys than decoder-only transformers")
    return FoundBase(shape, shape.stored if download is None else download)


def shape_of(
    config: Mapping[str, Any], tensors: Mapping[str, tuple[tuple[int, ...], int]] | None = None
) -> BaseShape | None:
    """The shape of a config.json; None if it does not name the usual sizes.

    Args:
        tensors: shape and stored bytes of each weight, if its headers are at hand. Their counts are exact.
    """
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    hidden = _size(text, "hidden_size", "n_embd", "d_model")
    layers = _size(text, "num_hidden_layers", "n_layer", "n_layers")
    heads = _size(text, "num_attention_heads", "n_head", "n_heads")
    vocabulary = _size(text, "vocab_size")
    if not (hidden and layers and heads and vocabulary):
        return None
    head_width = _size(text, "head_dim") or max(1, hidden // heads)
    query, key_value = heads * head_width, (_size(text, "num_key_value_heads") or heads) * head_width
    intermediate = _size(text, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden
    gated = text.get("model_type") not in UNGATED
    linears = _linears(hidden, query, key_value, intermediate, gated)
    tied = bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", not gated)))
    packable = layers * sum(linear.weights for linear in linears)
    plain = vocabulary * hidden * (1 if tied else 2) + (2 * layers + 1) * hidden
    stored = 2 * (packable + plain)
    if tensors:
        tied = not any("lm_head" in name or "embed_out" in name for name in tensors)
        counts = {name: math.prod(shape) for name, (shape, _) in tensors.items()}
        plain = sum(counts.values()) - packable
        stored = sum(size for _, size in tensors.values())
    return BaseShape(
        layers, hidden, heads, vocabulary, query, key_value, intermediate, gated, linears, plain, tied, stored
    )


def _size(config: Mapping[str, Any], *names: str) -> int | None:
    """The first of these keys that holds a size."""
    sizes = (config.get(name) for name in names)
    return next((size for size in sizes if type(size) is int and 0 < size <= LARGEST), None)


def _linears(hidden: int, query: int, key_value: int, intermediate: int, gated: bool) -> tuple[Linear, ...]:
    """The linear layers of one layer, by Llama's names."""
    return (
        Linear("q_proj", hidden, query),
        Linear("k_proj", hidden, key_value),
        Linear("v_proj", hidden, key_value),
        Linear("o_proj", query, hidden),
        *([Linear("gate_proj", hidden, intermediate)] if gated else []),
        Linear("up_proj", hidden, intermediate),
        Linear("down_proj", intermediate, hidden),
    )
