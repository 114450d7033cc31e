"""Checks that a model can be the base: complete files, a causal language model, lengths that fit.

Libraries fill in missing weights, load an encoder as a decoder, and raise many kinds of errors on a damaged
file. These checks turn each case into a UserError that names it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from configs.errors import UserError
from configs.schema import Base, Experiment, Stage
from stages.internals.transformers import attention_implementation, is_recurrent
from stages.models.demo_models import EMBEDDED

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Buffers that older versions of transformers saved: positions and causal masks. A model builds them itself.
BUFFERS = re.compile(r"(^|\.)(inv_freq|masked_bias|position_ids|(attn|attention)\.bias)$")
GENERATORS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


@contextmanager
def loading(config: Base, part: str) -> Iterator[None]:
    """Turn any error that a library raises while it loads `part` of the base into a UserError."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # no tables: `check_loaded` names the weights
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # tokenizers raises Exception itself
        raise unusable(config, f"{part}: {_reason(config, error)}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def _reason(config: Base, error: Exception) -> str:
    if isinstance(error, ValueError) and "trust_remote_code" in str(error):
        key = f"{config.key}.trust_remote_code"
        return f"it has its own code; read it, and set {key}: true if you trust it"
    kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
    reason = f"{kind}{' '.join(str(error).split())}"
    return reason if len(reason) <= 300 else f"{reason[:297]}..."


def unusable(config: Base, reason: str) -> UserError:
    return UserError(
        f"{config.key}.model: cannot load {config.model!r} (revision {config.revision or 'default'}): "
        f"{reason.removesuffix('.')}. Give a local folder with safetensors, a hub id that this machine "
        f"can reach, or one of the embedded models: {', '.join(sorted(EMBEDDED))}."
    )


def local_folder(config: Base) -> Path | None:
    """The folder of a base that is a path; None for an embedded model and for a hub id.

    Raises:
        UserError: it is a path, but not a folder.
    """
    folder = Path(config.model)
    if config.model in EMBEDDED or not (folder.is_absolute() or os.path.exists(folder)):
        return None
    if not os.path.isdir(folder):
        raise unusable(config, "it is a file" if os.path.exists(folder) else "there is no such folder")
    return folder


def check_folder(config: Base) -> None:
    """Raise UserError unless a base that is a path is a folder of whole safetensors files."""
    folder = local_folder(config)
    if folder is None:
        return
    if not (folder / "config.json").is_file():
        raise unusable(config, "the folder has no config.json")
    weights = sorted(folder.glob("*.safetensors"))
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if not weights and pickles:
        pickled = f"its weights are a pickle ({pickles[0]}), which may run code when it is read"
        raise unusable(config, f"{pickled}; save the model again with safe_serialization=True")
    if not weights:
        raise unusable(config, "the folder has no safetensors")
    for path in weights:
        if fault := safetensors_fault(path):
            raise unusable(config, fault)


def safetensors_fault(path: Path) -> str | None:
    """What is wrong with a safetensors file, by the length in its header; None if nothing is."""
    try:
        with safe_open(path, "pt"):
            return None
    except (SafetensorError, OSError) as error:
        return f"{path} is damaged or cut off ({error}); copy it again"


def check_architecture(config: Base, model_config: PretrainedConfig) -> None:
    """Raise UserError for a bidirectional model, such as BERT, or a model without LM head."""
    names = _architectures(model_config)
    if names and not any(name.endswith(GENERATORS) for name in names):
        raise unusable(config, f"its config.json says {', '.join(names)}, not a causal language model")


def check_values(config: Base, model_config: PretrainedConfig) -> None:
    """Raise UserError for values of config.json that no model can have."""
    names, window = _architectures(model_config), context_window(model_config)
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise unusable(
            config, f"config.json: architectures is {names!r:.60}, not a list of names; restore the file"
        )
    if isinstance(window, int | float) and window < 1:
        key = _window_key(model_config.get_text_config())
        raise unusable(config, f"config.json: {key} is {window}; restore the file")


def _architectures(model_config: PretrainedConfig) -> list[str]:
    """The classes that config.json names; it may give one without a list."""
    given = model_config.architectures or []
    return [given] if isinstance(given, str) else given


def check_loaded(config: Base, report: Mapping[str, Any]) -> None:
    """Raise UserError if the weights are not those that config.json describes.

    Weights that are missing or have another shape would stay random. Weights without a place in the model
    would be left out: those of more layers, for example.

    Args:
        report: transformers' `output_loading_info`, without the weights that an architecture may leave out.
    """
    if missing := sorted(report["missing_keys"]):
        raise unusable(config, f"{len(missing)} weights of its config.json are missing: {_first(missing)}")
    if mismatched := sorted(name for name, *_ in report["mismatched_keys"]):
        count, names = len(mismatched), _first(mismatched)
        raise unusable(config, f"{count} weights do not have the shape of its config.json: {names}")
    if unexpected := sorted(name for name in report["unexpected_keys"] if not BUFFERS.search(name)):
        count, names = len(unexpected), _first(unexpected)
        raise unusable(config, f"{count} weights have no place in the model of its config.json: {names}")


@torch.no_grad()
def check_logits(config: Base, model: PreTrainedModel) -> None:
    """Raise UserError unless the logits of two inputs are finite, and differ."""
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.linspace(0, vocabulary - 1, 16, device=model.device).long()
    with loading(config, "first forward"):
        logits = model(input_ids=torch.stack([ids, ids.flip(0)]), use_cache=False).logits[:, -1].float()
    if not logits.isfinite().all():
        raise unusable(config, "its logits are NaN or infinite; restore its weights and its config.json")
    if torch.equal(logits[0], logits[1]):
        raise unusable(
            config, "its logits do not depend on its input; restore its weights and its config.json"
        )


def context_window(config: PretrainedConfig) -> int | None:
    """The most tokens that a model reads, whatever its config calls them; None if nothing limits them."""
    text = config.get_text_config()
    window: int | None = text.to_dict().get(_window_key(text))
    return window


def _window_key(text: PretrainedConfig) -> str:
    """What the config of this kind of model calls the context window."""
    name = "max_position_embeddings"
    return str(type(text).attribute_map.get(name, name))


def check_vocabulary(base: Base, text: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError if the tokenizer has a token that the model of `base` has no embedding for."""
    largest = max(tokenizer.get_vocab().values())
    if largest >= text.vocab_size:
        raise UserError(
            f"{base.key}.model: the tokenizer of {base.model!r} has token {largest}, but the model only "
            f"{text.vocab_size} embeddings. The two are not from one model: copy both from the same place."
        )


def check_fit(
    experiment: Experiment,
    stage: Stage,
    base: Base,
    model_config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Raise UserError if a size of the experiment or an id of the tokenizer is too large for `base`."""
    text = model_config.get_text_config()
    window = context_window(model_config)
    check_vocabulary(base, text, tokenizer)
    for key, tokens in _lengths(experiment, stage).items():
        if window is not None and tokens > window:
            raise UserError(
                f"{key}: {tokens} tokens are more than the {window} of the context window of "
                f"{base.model!r}. Lower it, or use a base with a larger window."
            )
    for key, size, most, what in _sizes(experiment, stage, base, text):
        if size > most:
            raise UserError(
                f"{key}: {size:,} is more than {what} of {base.model!r}, {most:,}. Lower it to that or less."
            )


def _sizes(
    experiment: Experiment, stage: Stage, base: Base, text: PretrainedConfig
) -> Iterator[tuple[str, int, int, str]]:
    """Sizes of a stage: key, value, the most that can be meant on `base`, and what sets that limit."""
    hidden = text.to_dict().get("hidden_size")
    if hidden is not None:
        yield "adapter.r", experiment.adapter.r, hidden, "the hidden size"
    key, rollout = experiment.rollouts.get(stage, ("", None))
    if rollout is not None and rollout.top_k is not None and base.key == "base":
        yield f"{key}.top_k", rollout.top_k, text.vocab_size, "the vocabulary"


def supports_block_mask(base: PreTrainedModel) -> bool:
    """Whether a mask (B, 1, T, T) and position ids keep texts in one row apart.

    They do in full sdpa attention with rotary positions. They do not in recurrent layers, in sliding windows,
    or if the mask holds positions (ALiBi).
    """
    text = base.config.get_text_config().to_dict()
    return bool(
        attention_implementation(base) == "sdpa"
        and text.get("rope_parameters")
        and not is_recurrent(base)
        and not text.get("sliding_window")
        and set(text.get("layer_types") or ()) <= {"full_attention"}
    )


def check_packing(base: PreTrainedModel, key: str) -> None:
    """Raise UserError, naming `key`, for a base that cannot keep the examples of a packed row apart."""
    if not supports_block_mask(base):
        raise UserError(
            f"{key}: this base cannot separate packed examples (it is recurrent, or its attention is "
            f"not plain sdpa). Set {key} to false, or use another base."
        )


def _lengths(experiment: Experiment, stage: Stage) -> dict[str, int]:
    """The largest sequence lengths of a stage, by the keys of the config that set them."""
    data = experiment.data
    lengths = {"data.max_length": data.max_length}
    if stage in experiment.rollouts:
        key, rollout = experiment.rollouts[stage]
        tokens = data.max_prompt_length + rollout.max_new_tokens
        lengths[f"data.max_prompt_length + {key}.max_new_tokens"] = tokens
    return lengths


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def check_base(config: Experiment, stage: Stage, trained_on: str, digest: str) -> None:
    """Check that the base is the one that a stage trained on, not another of the same name.

    Raises:
        UserError: the base was `trained_on` in `stage` and is now `digest`.
    """
    if trained_on != digest:
        base = config.base_of(stage)
        then, now = ("+".join(part[:12] for part in full.split("+")) for full in (trained_on, digest))
        raise UserError(
            f"{base.key}.model: {base.model} is not what it was when stage {stage} was trained on it "
            f"({then} then, {now} now). Restore it, pin {base.key}.revision to what it was, or "
            f"train {stage} again."
        )
