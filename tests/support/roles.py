"""Roles over the tiny model, for tests that need a model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.schema import Adapter, Base, Data, Source
from stages.distributed.ranks import Ranks
from stages.feedback.reward_model import RewardModel
from stages.models.adapter_files import AdapterInfo, save_adapter
from stages.models.base import load_base
from stages.models.queries import ScalarQuery
from stages.models.role_models import RoleModels
from stages.models.roles import Roles

CPU = torch.device("cpu")
PPO_ROLES = {"policy": "sft", "reference": "sft", "reward": "rm", "critic": "rm"}
TRAINED = ("policy", "critic")


def tiny_roles(**base: Any) -> Roles:
    """The tiny base without roles. It is in NF4 and fp32 unless `base` says otherwise."""
    options = {"model": "tiny-random", "quantization": "nf4", "compute_dtype": "float32"}
    return Roles(load_base(Base(**(options | base)), CPU))


def new_role(roles: Roles, role: str, seed: int, *, head: bool = False, **adapter: Any) -> Roles:
    """Add `role` with weights as after some training. A new adapter's B is zero, which would hide faults."""
    torch.manual_seed(seed)
    roles.add_new(role, Adapter(**({"r": 4, "alpha": 8.0} | adapter)))
    if head:
        roles.add_head(role)
    with torch.no_grad():
        for parameter in roles.role_parameters(role).values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return roles


def ppo_roles(adapters: dict[str, Path], **base: Any) -> Roles:
    """The four roles as PPO sets them up."""
    roles = tiny_roles(**base)
    for role, source in PPO_ROLES.items():
        roles.add_from(role, adapters[source], trainable=role in TRAINED)
    return roles


def role_output(
    roles: Roles | RoleModels,
    role: str,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    start: int = 0,
) -> Tensor:
    """Scalars (B, T - start) of a role with a head; of another role, logits (B, T - start, V)."""
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    if isinstance(roles, RoleModels):
        roles = roles.of(role)
    if role in roles.heads:
        scalars: Tensor = roles(ScalarQuery(role, input_ids, attention_mask, position_ids, start))
        return scalars
    roles.activate(role)
    if position_ids is None:
        position_ids = attention_mask.cumsum(-1).sub(1).clamp(min=0)
    logits: Tensor = roles.causal(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
        use_cache=False,
        logits_to_keep=input_ids.shape[1] - start,
    ).logits
    return logits


def models_of(roles: Roles, tokenizer: Any = None) -> RoleModels:
    """The roles of one base as a stage has them."""
    return RoleModels((roles, tokenizer))


def reward_model_of(roles: Roles, tokenizer: Any, ranks: Ranks) -> RewardModel:
    """The reward model among `roles`, on the policy's base."""
    source = Source(path="prompts.jsonl")
    return RewardModel(models_of(roles, tokenizer), ranks, Data(sft=source, rm=source, ppo=source))


def tensors_of(roles: Roles, role: str) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in roles.role_parameters(role).items()}


def save_role_of(roles: Roles, role: str, folder: Path, tokenizer: Any) -> Path:
    config = roles.peft_config(role)
    info = AdapterInfo(role, config, "tiny-random", tokenizer, "card")
    save_adapter(folder, tensors_of(roles, role), info)
    return folder


def base_hash(roles: nn.Module) -> str:
    """SHA-256 over every byte of one base or two: parameters, buffers, and the state of quantization."""
    digest = hashlib.sha256()

    def add(name: str, tensor: Tensor) -> None:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).cpu().numpy().tobytes())

    for name, parameter in roles.named_parameters():
        if ".lora_" in name or "heads." in name:
            continue
        add(name, parameter)
        state = vars(parameter).get("quant_state")
        if state is not None:
            add(f"{name}.absmax", state.absmax)
            add(f"{name}.code", state.code)
            add(f"{name}.offset", state.offset.reshape(1))
            add(f"{name}.nested_absmax", state.state2.absmax)
            add(f"{name}.nested_code", state.state2.code)
    for name, buffer in roles.named_buffers():
        add(name, buffer)
    return digest.hexdigest()
