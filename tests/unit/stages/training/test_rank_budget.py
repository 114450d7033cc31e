"""AdaLoRA's budget: PEFT's rule on our steps, PEFT's penalty, and the same update as plain LoRA."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from peft.tuners.adalora import AdaLoraLayer

from configs.schema import Adapter, Base, Sft
from stages.models.base import load_base
from stages.models.roles import Role
from stages.training.methods import MethodRoles, method_config
from tests.support.roles import CPU

ADAPTER = Adapter(r=4, alpha=8.0)


def adalora(quantization: str = "nf4", adapter: Adapter = ADAPTER) -> MethodRoles:
    torch.manual_seed(0)
    base = Base(model="tiny-random", quantization=quantization, compute_dtype="float32")
    roles = MethodRoles(load_base(base, CPU), "", method_config(Sft(method="adalora"), adapter, 0))
    roles.add_new(Role.POLICY, adapter)
    with torch.no_grad():
        for name, parameter in roles.role_parameters(Role.POLICY).items():
            if "lora_E" in name:
                parameter.normal_()
    return roles


def layers(roles: MethodRoles) -> list[Any]:
    return [module for module in roles.modules() if isinstance(module, AdaLoraLayer)]


@pytest.mark.parametrize("rslora", [False, True])
def test_as_lora_it_is_the_update_of_peft(rslora: bool) -> None:
    adapter = ADAPTER.model_copy(update={"rslora": rslora})
    roles = adalora("none", adapter)
    assert roles.budget is not None
    config, tensors = roles.budget.as_lora(adapter)
    scaling = 8 / (2 if rslora else 4)
    assert config.use_rslora == rslora
    for name, layer in roles.causal.named_modules():
        if isinstance(layer, AdaLoraLayer):
            a, b = (tensors[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
            torch.testing.assert_close(scaling * b @ a, layer.get_delta_weight("policy").detach())


def test_the_penalty_is_that_of_peft() -> None:
    """PEFT adds it to the loss of its own forward."""
    roles = adalora()
    assert roles.budget is not None
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        plain = roles.causal(input_ids=ids, labels=ids).loss
        whole = roles.peft(input_ids=ids, labels=ids).loss
        torch.testing.assert_close(roles.budget.penalty(), whole - plain, rtol=1e-4, atol=1e-5)


def test_ranks_fall_to_half_by_two_thirds_of_the_steps() -> None:
    roles, steps = adalora(), 30
    kept = ranks_while_training(roles, steps)
    whole = len(layers(roles)) * 4
    assert kept[:3] == [whole] * 3
    assert kept[19:] == [whole // 2] * 11
    assert all(later <= earlier for earlier, later in pairwise(kept))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_few_steps_give_ranks_too(steps: int) -> None:
    roles = adalora()
    assert len(layers(roles)) * 2 <= ranks_while_training(roles, steps)[-1] < len(layers(roles)) * 3


def ranks_while_training(roles: MethodRoles, steps: int) -> list[int]:
    """How many ranks all layers have together after each update."""
    assert roles.budget is not None
    roles.budget.schedule(steps)
    optimizer = torch.optim.AdamW(roles.role_parameters(Role.POLICY).values(), lr=1e-2)
    done = 0
    roles.budget.follow(optimizer, lambda: done)
    kept = []
    for done in range(1, steps + 1):  # noqa: B007 - the hook reads it
        ids = torch.randint(3, 300, (2, 12))
        roles.causal(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        kept.append(sum(roles.budget.ranks()))
    return kept


def test_a_skipped_update_gives_no_ranks() -> None:
    roles = adalora()
    assert roles.budget is not None
    roles.budget.schedule(3)
    roles.budget.allocate(2)  # no gradients, as after a norm that was not finite
    assert sum(roles.budget.ranks()) == len(layers(roles)) * 4
