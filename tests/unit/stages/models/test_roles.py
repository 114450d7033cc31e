"""The intended parameters train, in fp32, with and without gradient checkpointing."""

import itertools
import shutil

import pytest
import torch

from configs.errors import UserError
from configs.schema import Adapter, Base
from stages.models.base import load_base
from stages.models.role_models import trainable
from stages.models.roles import Role, Roles
from tests.support.role_probes import (
    ALL_ROLES,
    IDS,
    LAYERS,
    MASK,
    gradients_by_name,
    is_trained,
    loss_of,
    output_of,
)
from tests.support.roles import (
    CPU,
    PPO_ROLES,
    TRAINED,
    new_role,
    ppo_roles,
    role_output,
    save_role_of,
    tiny_roles,
)


@pytest.fixture(scope="module")
def new_base():
    """A function that loads an unquantized base, which is fast."""
    return lambda: load_base(Base(model="tiny-random", quantization="none", compute_dtype="float32"), CPU)


def test_only_the_intended_parameters_require_gradients(roles_of_ppo):
    trained = {name for name, parameter in roles_of_ppo.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in roles_of_ppo.named_parameters() if is_trained(name)}
    assert (
        len(trained) == 2 * LAYERS * 2 + 2
    )  # A and B of every layer, for two roles; weight and bias of a head


@pytest.mark.parametrize("role", ALL_ROLES)
def test_activating_and_forwarding_leave_requires_grad_alone(role, roles_of_ppo):
    before = {name: parameter.requires_grad for name, parameter in roles_of_ppo.named_parameters()}
    roles_of_ppo.activate(role)
    assert {name: parameter.requires_grad for name, parameter in roles_of_ppo.named_parameters()} == before
    output_of(roles_of_ppo, role)
    role_output(roles_of_ppo, role, IDS, MASK)
    assert {name: parameter.requires_grad for name, parameter in roles_of_ppo.named_parameters()} == before


@pytest.mark.parametrize("order", list(itertools.permutations(PPO_ROLES)), ids="-".join)
def test_order_of_adding_does_not_matter(order, adapters, new_base):
    roles = Roles(new_base())
    for role in order:
        roles.add_from(role, adapters[PPO_ROLES[role]], trainable=role in TRAINED)
        present = [name for name, parameter in roles.named_parameters() if parameter.requires_grad]
        assert all(is_trained(name) for name in present)
    assert len(present) == 2 * LAYERS * 2 + 2


@pytest.mark.parametrize("role", PPO_ROLES)
def test_backward_reaches_the_active_role_alone(role, changeable_roles):
    loss = loss_of(changeable_roles, role)
    assert loss.requires_grad == (role in TRAINED)
    if role in TRAINED:
        loss.backward()
    reached = gradients_by_name(changeable_roles)
    assert set(reached) == {
        name for name, _ in changeable_roles.named_parameters() if is_trained(name, {role} & set(TRAINED))
    }
    assert all(gradient.abs().max() > 0 for gradient in reached.values())


def test_role_parameters_are_those_of_the_role(roles_of_ppo):
    for role in PPO_ROLES:
        names = set(roles_of_ppo.role_parameters(role))
        assert names == {name for name, _ in roles_of_ppo.named_parameters() if is_trained(name, {role})}
        assert len(names) == 2 * LAYERS + 2 * (role in ("reward", "critic"))
    assert roles_of_ppo.role_parameters(Role.BASE) == {}
    assert set(trainable(roles_of_ppo, PPO_ROLES)) == set(trainable(roles_of_ppo, TRAINED))
    assert set(trainable(roles_of_ppo, ["critic"])) == set(roles_of_ppo.role_parameters("critic"))


def test_base_is_frozen_from_the_start(new_base):
    base = new_base()
    assert all(parameter.requires_grad for parameter in base.parameters())
    assert not any(parameter.requires_grad for parameter in Roles(base).parameters())


@pytest.mark.filterwarnings(
    "ignore:You are trying to modify a model with PEFT", "ignore:Already found a `peft"
)
def test_new_role_leaves_the_others_as_they_were(adapters, new_base):
    roles = Roles(new_base())
    roles.add_from("reference", adapters["sft"], trainable=False)
    for role in ("policy", "critic"):
        roles.add_new(role, Adapter(r=4))
    trained = {name for name, parameter in roles.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in roles.named_parameters() if is_trained(name)}
    assert len(trained) == 2 * LAYERS * 2


def test_fresh_adapter_covers_all_linear_layers_but_the_head():
    roles = tiny_roles()
    roles.add_new("policy", Adapter(r=4))
    layers = {name.rsplit(".lora_", 1)[0] for name in roles.role_parameters("policy")}
    assert len(layers) == LAYERS
    assert not [name for name in layers if "lm_head" in name or "embed" in name]
    chosen = tiny_roles()
    chosen.add_new("policy", Adapter(r=4, target_modules=["q_proj", "v_proj"]))
    assert {name.split(".")[5] for name in chosen.role_parameters("policy")} == {"q_proj", "v_proj"}


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_fresh_adapter_takes_its_settings(dropout):
    roles = new_role(tiny_roles(), "policy", 0, r=2, alpha=6.0, dropout=dropout).train()
    config = roles.peft_config("policy")
    assert (config.r, config.lora_alpha, config.lora_dropout) == (2, 6.0, dropout)
    assert torch.equal(output_of(roles, "policy"), output_of(roles, "policy")) == (dropout == 0)


def test_target_modules_that_match_nothing():
    with pytest.raises(UserError, match=r"^adapter\.target_modules: .*no_such_layer"):
        tiny_roles().add_new("policy", Adapter(target_modules=["no_such_layer"]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_adapters_and_heads_are_fp32_and_all_change_at_lr_1e_6(quantization, dtype, adapters):
    roles = ppo_roles(adapters, quantization=quantization, compute_dtype=dtype).train()
    assert roles.causal.model.norm.weight.dtype == getattr(torch, dtype)
    for role in PPO_ROLES:
        assert {parameter.dtype for parameter in roles.role_parameters(role).values()} == {torch.float32}
    before = {name: parameter.detach().clone() for name, parameter in roles.named_parameters()}
    optimizer = torch.optim.AdamW(trainable(roles, TRAINED).values(), lr=1e-6, weight_decay=0.0)
    for role in TRAINED:
        loss_of(roles, role).backward()
    optimizer.step()
    for name, parameter in roles.named_parameters():
        changed = (parameter != before[name]).float().mean().item()
        assert changed > 0.99 if is_trained(name) else changed == 0, name


def test_fresh_adapters_are_fp32_over_a_bf16_base():
    roles = tiny_roles(compute_dtype="bfloat16")
    roles.add_new("reward", Adapter(r=4))
    roles.add_head("reward")
    assert {parameter.dtype for parameter in roles.role_parameters("reward").values()} == {torch.float32}
    assert output_of(roles, "reward").dtype == torch.float32


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_gives_the_same_gradients(dropout, tiny_tokenizer, tmp_path):
    source = new_role(tiny_roles(), "policy", 0, head=True, dropout=dropout)
    folder = save_role_of(source, "policy", tmp_path / "adapter", tiny_tokenizer)
    results, calls = [], []
    for checkpointing in (False, True):
        roles = tiny_roles(gradient_checkpointing=checkpointing)
        roles.add_from("critic", folder, trainable=True)
        (folder / "head.safetensors").rename(tmp_path / "head")
        roles.add_from("policy", folder, trainable=True)
        shutil.move(tmp_path / "head", folder / "head.safetensors")
        roles.train()
        forwards: list[int] = []
        roles.causal.model.layers[0].mlp.register_forward_pre_hook(
            lambda *_, forwards=forwards: forwards.append(1)
        )
        torch.manual_seed(0)
        for role in ("policy", "critic"):  # each backward before the next forward, as PPO does
            loss_of(roles, role).backward()
        results.append(gradients_by_name(roles))
        calls.append(len(forwards))
    assert calls == [2, 4]  # with checkpointing, every block runs again in backward
    plain, recomputed = results
    assert len(plain) == 2 * 2 * LAYERS + 2
    assert all(gradient.abs().max() > 0 for gradient in plain.values())
    torch.testing.assert_close(recomputed, plain, rtol=1e-6, atol=1e-9)
