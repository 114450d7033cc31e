"""One batch, and the outputs, a loss and its gradients that roles compute on it."""

from __future__ import annotations

from collections.abc import Collection

import torch

from stages.models.queries import ScalarQuery, TokenQuery
from stages.models.roles import Role, Roles
from tests.support.roles import PPO_ROLES, TRAINED, role_output

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [50, 60, 70, 80, 90, 100]])
MASK = torch.ones_like(IDS)
LAYERS = 2 * 7  # two blocks of q, k, v, o, gate, up, down
ALL_ROLES = (*PPO_ROLES, Role.BASE)


def output_of(roles: Roles, role: str, start: int = 0) -> torch.Tensor:
    with torch.no_grad():
        return role_output(roles, role, IDS, MASK, start=start)


def loss_of(roles: Roles, role: str) -> torch.Tensor:
    if role in roles.heads:
        return roles(ScalarQuery(role, IDS, MASK)).square().mean()
    return roles(TokenQuery(role, IDS, MASK, targets=IDS[:, 1:])).logprobs.square().mean()


def gradients_by_name(roles: Roles) -> dict[str, torch.Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in roles.named_parameters()
        if parameter.grad is not None
    }


def is_trained(name: str, roles: Collection[str] = TRAINED) -> bool:
    """Whether a parameter's name is of a trained role: `....lora_A.policy.weight`, `heads.critic.bias`."""
    parts = name.split(".")
    return parts[-2] in roles and (parts[0] == "heads" or parts[-3] in ("lora_A", "lora_B"))
