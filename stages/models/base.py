"""The frozen base model, quantized, with its config and tokenizer."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.utils import HFValidationError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from configs.errors import UserError
from configs.regular_file import read_regular_file
from configs.schema import Base
from data.storage.folder_digest import folder_digest
from stages.internals.bitsandbytes import keep_packing
from stages.internals.transformers import commit_hash, find_file
from stages.internals.trl import disable_dropout_in_model
from stages.models.base_checks import (
    check_architecture,
    check_folder,
    check_loaded,
    check_logits,
    check_values,
    loading,
    local_folder,
)
from stages.models.base_files import check_files, check_weights
from stages.models.demo_models import EMBEDDED, embedded_model, is_built
from stages.models.freed_memory import keep_freed_memory, return_freed_blocks, return_freed_memory
from stages.models.onednn import use_onednn


def disable_dropout(model: nn.Module) -> None:
    """Turn off dropout: `nn.Dropout` modules, and rates that modules pass to functions."""
    disable_dropout_in_model(model)
    for module in model.modules():
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def compute_dtype(choice: str, device: torch.device) -> torch.dtype:
    """The dtype of activations: `auto` is bf16 if the hardware has bf16 products, else fp32."""
    if choice != "auto":
        return getattr(torch, choice)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16")
    return torch.bfloat16 if native else torch.float32


def load_base(config: Base, device: torch.device) -> PreTrainedModel:
    """Load the frozen base onto `device`, quantized as `config` says.

    Raises:
        UserError: no embedded model, folder or hub model has this name; or the model is incomplete, or not a
            causal language model.
    """
    dtype = compute_dtype(config.compute_dtype, device)
    if device.type == "cpu":
        use_onednn()
        return_freed_blocks()
    check_folder(config)
    check_architecture(config, load_config(config))
    check_weights(config, model_folder(config))
    with loading(config, "weights"):
        model, loading_report = AutoModelForCausalLM.from_pretrained(
            model_folder(config),
            revision=config.revision,
            dtype=dtype,
            quantization_config=_quantization(config, dtype),
            device_map={"": device},
            attn_implementation=config.attention,
            trust_remote_code=config.trust_remote_code,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # the library's own error names no weight; check_loaded does
            output_loading_info=True,
        )
    check_loaded(config, loading_report)
    keep_packing(model)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    # Sampling defaults of a hub model (top-k, repetition penalty) would make samples off-policy.
    model.generation_config = GenerationConfig()
    check_logits(config, model)
    if device.type == "cpu":
        if config.quantization != "none":
            _leave_files(model)
        return_freed_memory()
        keep_freed_memory()
    return model


def _leave_files(model: PreTrainedModel) -> None:
    """Copy what is not quantized: a tensor that is part of a mapped file would keep all of it in RAM."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.clone()


def empty_base(config: Base) -> PreTrainedModel:
    """The base without weights: its modules by name and shape, on torch's device `meta`.

    Raises:
        UserError: see `load_config`.
    """
    model_config = load_config(config)
    with loading(config, "config.json"), torch.device("meta"):
        return AutoModelForCausalLM.from_config(model_config, trust_remote_code=config.trust_remote_code)


def load_config(config: Base) -> PretrainedConfig:
    """The base's `config.json`.

    Raises:
        UserError: there is no such model, transformers does not know its type, a value of its config.json is
            damaged, or a file beside it would change what is loaded.
    """
    local_folder(config)
    check_files(config, model_folder(config))
    with loading(config, "config.json"):
        model_config = AutoConfig.from_pretrained(
            model_folder(config), revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    check_values(config, model_config)
    return model_config


def _quantization(config: Base, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if config.quantization == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if config.quantization == "int8" else None


def load_tokenizer(config: Base, *, pairs: bool = False) -> PreTrainedTokenizerBase:
    """The base's tokenizer, with a pad token.

    Args:
        pairs: one that separates two texts, as BERT's does, needs no end-of-turn token.

    Raises:
        UserError: there is no such model, or its tokenizer has no end-of-turn token, or a new one.
    """
    local_folder(config)
    with loading(config, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            model_folder(config), revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    if tokenizer.eos_token_id is None and not (pairs and tokenizer.sep_token_id is not None):
        raise UserError(
            f"{config.key}.model: the tokenizer of {config.model!r} has no end-of-text token (eos_token). "
            "Set one in its tokenizer_config.json."
        )
    if not _has_end(config, tokenizer):
        raise UserError(
            f"{config.key}.model: the end-of-text token of {config.model!r} (eos_token), "
            f"{tokenizer.eos_token!r}, is not in its tokenizer.json, so the model has not learned it. "
            "Correct tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None:
        # Masks mark padding, so any token can be the pad token.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _has_end(config: Base, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the files of a fast tokenizer have its end. transformers adds one that they lack, untrained."""
    token = tokenizer.eos_token
    names = ("tokenizer.json", "tokenizer_config.json")
    file, settings = (find_file(model_folder(config), name, config.revision) for name in names)
    if token is None or file is None or tokenizer.eos_token_id < tokenizer.vocab_size:
        return True  # what is added comes behind the vocabulary
    added = list(json.loads(read_regular_file(file)).get("added_tokens", []))
    if settings is not None:
        added += json.loads(read_regular_file(settings)).get("added_tokens_decoder", {}).values()
    return token in {each.get("content") for each in added}


def model_folder(config: Base) -> str:
    """The folder or hub id to load from. An embedded model is written to its folder on first use."""
    return str(embedded_model(config.model)) if config.model in EMBEDDED else config.model


def is_downloaded(config: Base) -> bool:
    """Whether the base is on this machine: its path, or its `config.json` in the hub's cache.

    It raises no error. What is wrong with the name or the path, the checks of files and of the base say.
    """
    if config.model in EMBEDDED:
        return is_built(config.model)
    if os.path.exists(config.model):
        return True
    try:
        file = try_to_load_from_cache(config.model, "config.json", revision=config.revision)
    except HFValidationError:  # neither a path that exists nor an id of the hub
        return False
    return isinstance(file, str)


def base_digest(config: Base, model: PreTrainedModel) -> str:
    """Identity of a base beside its name: the digest of its folder, or its commit on the hub."""
    return folder_digest(Path(model_folder(config))) or str(commit_hash(model))
