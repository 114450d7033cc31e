"""A role as one model without adapter and without quantization, in transformers' own format."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from configs.errors import UserError
from configs.schema import Rollout
from stages.models.roles import Role, Roles
from stages.sampling.merged_model import MergedCopy

# A chat template around another, without the generation prompt that a classifier never needs. `ending` stands
# in place of the token that ends the answer.
ENDS_WITH_ANSWER = (
    "{{% set conversation %}}{template}{{% endset %}}{{% set conversation = conversation.rstrip() %}}"
    "{{% if conversation.endswith(eos_token) %}}"
    "{{% set conversation = conversation[: -(eos_token | length)] %}}{{% endif %}}"
    "{{{{ conversation }}}}{{{{ {ending} }}}}"
)
ANY_SIZE = "100000GB"  # of a file: one file for a model of any size is what every reader takes


def save_merged(
    roles: Roles,
    role: str,
    dtype: torch.dtype,
    rollout: Rollout,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
) -> None:
    """Write the causal model that `role` is: the dequantized base with W + scaling * B A (Hu et al. 2021).

    The base is dequantized to exactly the values that it was trained on (QLoRA, Dettmers et al. 2023,
    equation 5). Weights are summed in fp32 and then rounded to `dtype` once.

    Args:
        rollout: the sampling of the policy; it becomes the model's `generation_config.json`.
        tokenizer: whose end-of-turn token ends an answer, whatever the base's config says.
    """
    copy_ = MergedCopy(roles, dtype, packs=False)
    model = copy_.load_role(role)
    model.config = plain_config(roles, dtype)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    for config in (model.config, model.config.get_text_config()):
        config.update(ends)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k or 0,
        max_new_tokens=rollout.max_new_tokens,
        **ends,
    )
    _save(model, model.state_dict(), dtype, folder)


def save_classifier(
    roles: Roles, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> float:
    """Write the reward model as a sequence classifier with one label, and its tokenizer.

    The classifier's head has no bias. So its logit is the score less a constant, which cancels in every
    comparison of two answers.

    Returns:
        The constant: score = logit + constant.

    Raises:
        UserError: transformers has no such classifier of this architecture, or the vocabulary has no token
            for padding.
    """
    if roles.head(Role.REWARD).pooling == "mean":
        raise UserError(
            "--format reward: the score is a mean over the answer's tokens (rm.pooling), and a sequence "
            "classifier reads one token. Export with --format adapter."
        )
    model = MergedCopy(roles, dtype, packs=False).load_role(Role.REWARD)
    tokenizer = classifier_tokenizer(tokenizer, ending_text(roles, tokenizer))
    config = plain_config(roles, dtype)
    config.num_labels, config.id2label, config.label2id = 1, {0: "score"}, {"score": 0}
    config.problem_type = "regression"
    config.get_text_config().pad_token_id = tokenizer.pad_token_id
    classifier = _empty_classifier(config)
    head: Any = roles.heads[Role.REWARD]
    weights = _renamed(model, classifier) | {"score.weight": head.weight.detach()}
    missing = classifier.state_dict().keys() ^ weights.keys()
    if missing:
        raise UserError(
            f"--format reward: transformers' classifier for {config.model_type} has other weights "
            f"({', '.join(sorted(missing)[:3])}). Export with --format adapter."
        )
    _save(classifier, weights, dtype, folder)
    tokenizer.save_pretrained(folder)
    return float(head.bias)


def _save(model: PreTrainedModel, weights: dict[str, Tensor], dtype: torch.dtype, folder: Path) -> None:
    """Write `weights` in `dtype` as those of `model`, and its config."""
    model.save_pretrained(folder, state_dict=cast(weights, dtype), max_shard_size=ANY_SIZE)
    model.config.dtype = dtype  # save_pretrained writes that of the modules, which `weights` replace
    model.config.save_pretrained(folder)


def plain_config(roles: Roles, dtype: torch.dtype) -> PretrainedConfig:
    """The base's config without quantization."""
    config: PretrainedConfig = copy.deepcopy(roles.causal.config)
    if "quantization_config" in vars(config):
        del config.quantization_config
    config.dtype = dtype
    return config


def cast(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights in `dtype`. Names that share a tensor still share one, as tied embeddings do."""
    casts: dict[int, Tensor] = {}
    for tensor in weights.values():
        casts.setdefault(tensor.data_ptr(), tensor.detach().to(dtype).contiguous())
    return {name: casts[tensor.data_ptr()] for name, tensor in weights.items()}


def ending_text(roles: Roles, tokenizer: PreTrainedTokenizerBase) -> str:
    """What the reward model reads after the text of an answer: its score is that of the last token."""
    ending = roles.head(Role.REWARD).ending
    return str(tokenizer.eos_token if ending is None else tokenizer.decode(ending.read))


def classifier_tokenizer(tokenizer: PreTrainedTokenizerBase, ending: str) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer with which a classifier reads the last token of `ending`, after the answer.

    A classifier reads the last token that is not padding. So padding is no token that can end an answer, and
    the chat template writes nothing after `ending` (ChatML writes a line break after the end of a turn).

    Raises:
        UserError: the vocabulary has no other special token.
    """
    copied = copy.deepcopy(tokenizer)
    if copied.chat_template:
        copied.chat_template = ENDS_WITH_ANSWER.format(
            template=copied.chat_template, ending=json.dumps(ending)
        )
    if copied.pad_token_id != copied.eos_token_id:
        return copied
    used = {copied.eos_token, "<|im_start|>", "<|im_end|>"}
    if copied.chat_template:
        used |= {token for token in copied.all_special_tokens if token in str(copied.chat_template)}
    others = [token for token in copied.all_special_tokens if token not in used]
    others += [token.content for token in copied.added_tokens_decoder.values() if token.content not in used]
    if not others:
        raise UserError(
            f"--format reward: the tokenizer of {tokenizer.name_or_path} has no special token beside "
            f"{copied.eos_token} that could pad. Export with --format adapter."
        )
    copied.pad_token = others[0]
    return copied


def _empty_classifier(config: PretrainedConfig) -> PreTrainedModel:
    try:
        with init_empty_weights():
            classifier: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    except ValueError:
        raise UserError(
            f"--format reward: transformers has no sequence classifier for {config.model_type}. Export with "
            "--format adapter."
        ) from None
    return classifier


def _renamed(model: PreTrainedModel, classifier: Any) -> dict[str, Tensor]:
    """The decoder's weights under the names that they have in the classifier."""
    decoder = model.get_decoder()
    prefix: str = classifier.base_model_prefix
    return {f"{prefix}.{name}": tensor for name, tensor in decoder.state_dict().items()}
