"""The result of a stage: its role as a PEFT folder with tokenizer and model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from stages.context import Context
from stages.models.adapter_files import ADAPTER_FILE, AdapterInfo, save_adapter, write_adapter
from stages.models.reward_members import PREFIX
from stages.models.role_models import RoleModels
from stages.training.engine import Engine
from stages.training.methods import MethodRoles


def save_role(
    context: Context, engine: Engine, role: str, tokenizer: PreTrainedTokenizerBase, name: str = "adapter"
) -> None:
    """Write the adapter of `role` (and its head) to the stage's folder `name`. Every rank must call."""
    roles = engine.models.of(role)
    tensors = engine.role_tensors(role)
    if engine.ranks.rank == 0 and isinstance(roles, MethodRoles):
        _write_method(context, roles, role, tokenizer)
    elif engine.ranks.rank == 0:
        write_role(context, engine.models, role, tokenizer, tensors, name)
    engine.ranks.barrier()


def write_role(
    context: Context,
    roles: RoleModels,
    role: str,
    tokenizer: PreTrainedTokenizerBase,
    tensors: dict[str, Any],
    name: str = "adapter",
) -> None:
    """Write `tensors` of `role` to the stage's folder `name`, with tokenizer and model card."""
    save_adapter(context.folder / name, tensors, _info(context, roles, role, tokenizer))


def write_members(
    context: Context,
    roles: RoleModels,
    tensors: Mapping[str, dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write the members of the reward model: the first as the result, the others in folders inside.

    Args:
        tensors: of each member's role, in order.
    """
    (first, of_first), *others = tensors.items()
    inside = {
        f"{PREFIX}{number}": (of_role, _info(context, roles, role, tokenizer))
        for number, (role, of_role) in enumerate(others, start=2)
    }
    save_adapter(context.folder / "adapter", of_first, _info(context, roles, first, tokenizer), inside)


def _info(context: Context, roles: RoleModels, role: str, tokenizer: PreTrainedTokenizerBase) -> AdapterInfo:
    base, of_role = context.config.base_of(context.stage).model, roles.of(role)
    head = of_role.head(role) if role in of_role.heads else None
    return AdapterInfo(
        role,
        roles.peft_config(role),
        base,
        tokenizer,
        _card(context, role),
        head.ending if head else None,
        head.pooling if head else "last",
    )


def _write_method(
    context: Context, roles: MethodRoles, role: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write what `sft.method` trained, in PEFT's own form, with tokenizer and model card."""
    config, tensors = roles.result(role)
    base = context.config.base_of(context.stage).model
    info = AdapterInfo(role, config, base, tokenizer, _card(context, role))
    write_adapter(context.folder / "adapter", {ADAPTER_FILE: tensors}, info)


def _card(context: Context, role: str) -> str:
    config, base, key = context.config, context.config.base_of(context.stage), f"{context.stage}.from"
    kind = f"LoRA of rank {config.adapter.r}"
    if context.stage == "sft" and config.sft.no_role:
        kind = f"what `sft.method: {config.sft.method}` trained,"
    start = f"It started from the adapter in `{key}`. " if context.stage in config.starts else ""
    return f"""---
base_model: {base.model}
library_name: peft
tags: [lora, rlhf, {context.stage}]
---
# {config.name}: {role}

The `{role}` adapter of the {context.stage} stage of the experiment `{config.name}`: {kind} over
`{base.model}` (revision {base.revision or "default"}, {base.quantization}).
{start}Load it with `PeftModel.from_pretrained(base, folder)`. Its manifest, one folder up,
holds what it was trained on and what it scored.
"""
