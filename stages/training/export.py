"""The result of a stage: its role as a PEFT folder with tokenizer and model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft import PeftConfig
from transformers import PreTrainedTokenizerBase

from stages.context import Context
from stages.models.adapter_files import AdapterInfo, write_adapter
from stages.models.reward_members import PREFIX
from stages.models.role_models import RoleModels
from stages.training.engine import Engine


def save_role(
    context: Context, engine: Engine, role: str, tokenizer: PreTrainedTokenizerBase, name: str = "adapter"
) -> None:
    """Write the adapter of `role` (and its head) to the stage's folder `name`. Every rank must call."""
    tensors = engine.role_tensors(role)
    if engine.ranks.rank == 0:
        config, files = engine.models.of(role).saved(role, tensors)
        info = _info(context, engine.models, role, config, tokenizer)
        write_adapter(context.folder / name, files, info)
    engine.ranks.barrier()


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
    written = []
    for role, of_role in tensors.items():
        config, files = roles.of(role).saved(role, of_role)
        written.append((files, _info(context, roles, role, config, tokenizer)))
    (files, info), *others = written
    inside = {f"{PREFIX}{number}": other for number, other in enumerate(others, start=2)}
    write_adapter(context.folder / "adapter", files, info, inside)


def _info(
    context: Context, roles: RoleModels, role: str, config: PeftConfig, tokenizer: PreTrainedTokenizerBase
) -> AdapterInfo:
    base, of_role = context.config.base_of(context.stage).model, roles.of(role)
    head = of_role.head(role) if role in of_role.heads else None
    return AdapterInfo(
        role,
        config,
        base,
        tokenizer,
        _card(context, role),
        head.ending if head else None,
        head.pooling if head else "last",
    )


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
