"""The fused LoRA product gives PEFT's outputs and gradients. Other cases use PEFT's forward."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora import LoraLayer

from stages.models.roles import Roles
from tests.support.roles import new_role, ppo_roles, tiny_roles

NAME = "causal.model.layers.0.mlp.down_proj"


def layer_of(roles: Roles) -> LoraLayer:
    return roles.get_submodule(NAME)


def input_of(layer: LoraLayer) -> torch.Tensor:
    torch.manual_seed(5)
    return torch.randn(3, 4, layer.in_features, requires_grad=True)


def output_and_gradients(layer, forward) -> list[torch.Tensor]:
    """Output, and the gradients of input, A and B."""
    x, a, b = input_of(layer), layer.lora_A["policy"].weight, layer.lora_B["policy"].weight
    a.grad = b.grad = None
    output = forward(x)
    output.square().sum().backward()
    return [output.detach(), x.grad, a.grad.clone(), b.grad.clone()]


def dimensions_seen_by_base(layer, monkeypatch) -> list[int]:
    """Dimensions of the base layer's input at each call: 2 for rows, 3 for the unchanged input."""
    calls: list[int] = []
    inner = layer.get_base_layer().forward

    def forward(x, *args, **kwargs):
        calls.append(x.dim())
        return inner(x, *args, **kwargs)

    monkeypatch.setattr(layer.get_base_layer(), "forward", forward)
    return calls


@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
def test_outputs_and_gradients_are_those_of_peft(quantization: str, adapters) -> None:
    roles = ppo_roles(adapters, quantization=quantization).train()
    roles.activate("policy")
    layer = layer_of(roles)
    fused, peft = (
        output_and_gradients(layer, layer),
        output_and_gradients(layer, lambda x: type(layer).forward(layer, x)),
    )
    base = layer.get_base_layer()(input_of(layer)).detach()
    assert not torch.allclose(fused[0], base, atol=1e-2)  # the adapter does something
    for actual, expected in zip(fused, peft, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_bf16_activations_are_kept_in_bf16_and_adapters_learn_in_fp32(adapters) -> None:
    """PEFT makes an fp32 copy of the input for the product with A, and keeps it for backward."""
    roles = ppo_roles(adapters, compute_dtype="bfloat16").train()
    roles.activate("policy")
    layer = layer_of(roles)
    saved: list[torch.Tensor] = []

    def save(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            return layer(x.bfloat16())

    fused = output_and_gradients(layer, forward)
    peft = output_and_gradients(layer, lambda x: type(layer).forward(layer, x.bfloat16()))
    assert fused[0].dtype == torch.bfloat16
    assert {gradient.dtype for gradient in fused[1:]} == {torch.float32}
    inputs = [
        tensor.dtype for tensor in saved if tensor.shape[-1] == layer.in_features and tensor.numel() >= 12
    ]
    assert torch.bfloat16 in inputs and torch.float32 not in inputs
    for actual, expected in zip(fused, peft, strict=True):
        assert (actual.float() - expected.float()).norm() < 0.02 * expected.float().norm()


def test_each_role_adds_its_own(adapters) -> None:
    roles = ppo_roles(adapters).eval()
    layer = layer_of(roles)
    outputs = {}
    for role in ("policy", "reward", "base"):
        roles.activate(role)
        outputs[role] = layer(input_of(layer))
        torch.testing.assert_close(outputs[role], type(layer).forward(layer, input_of(layer)))
    assert not torch.allclose(outputs["policy"], outputs["reward"], atol=1e-3)


def test_layers_of_a_later_role_are_fused_too() -> None:
    roles = new_role(tiny_roles(), "narrow", 0, target_modules=["q_proj"])
    new_role(roles, "policy", 1)
    assert "forward" in vars(layer_of(roles))


@pytest.mark.parametrize("dropout", [torch.nn.Identity(), torch.nn.Dropout(0.0)], ids=["none", "of 0"])
def test_rows_are_what_the_base_sees_where_the_adapter_is_plain(dropout, adapters, monkeypatch) -> None:
    """PPO sets every dropout to probability 0."""
    roles = ppo_roles(adapters).train()
    roles.activate("policy")
    layer = layer_of(roles)
    layer.lora_dropout["policy"] = dropout
    dimensions = dimensions_seen_by_base(layer, monkeypatch)
    layer(input_of(layer))
    assert dimensions == [2]


@pytest.mark.parametrize("case", ["dropout", "sharded", "without adapter"])
def test_peft_does_what_is_more_than_that(case: str, adapters, monkeypatch) -> None:
    roles = ppo_roles(adapters).train()
    roles.activate("base" if case == "without adapter" else "policy")
    layer = layer_of(roles)
    x = input_of(layer)
    if case == "dropout":
        layer.lora_dropout["policy"] = torch.nn.Dropout(0.1)
    elif case == "sharded":
        vars(layer.lora_B["policy"].weight)["ds_status"] = None
    dimensions = dimensions_seen_by_base(layer, monkeypatch)
    assert layer(x).dtype == x.dtype
    assert dimensions == [3]


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_rows_of_one_batch_use_different_adapters(quantization: str, compute_dtype: str) -> None:
    roles = tiny_roles(quantization=quantization, compute_dtype=compute_dtype)
    new_role(new_role(roles, "one", 1), "two", 2, r=8, target_modules=["q_proj", "down_proj"])
    of_rows = ["two", "base", "one", "two"]
    assert roles.eval().can_mix(of_rows)
    input_ids = torch.arange(4 * 6).view(4, 6) + 5
    with torch.no_grad():
        roles.activate_rows(of_rows)
        mixed = roles.causal(input_ids=input_ids).logits
        for row, role in enumerate(of_rows):
            roles.activate(role)
            alone = roles.causal(input_ids=input_ids).logits[row]
            torch.testing.assert_close(mixed[row], alone, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(mixed[0], alone, atol=1e-2)


@pytest.mark.parametrize("reason", ["embedding", "experts"])
def test_rows_that_adapters_cannot_tell_apart_are_not_mixed(reason: str) -> None:
    roles = tiny_roles(quantization="none")
    if reason == "embedding":  # its adapter is no pair of linear layers
        new_role(roles, "one", 1, target_modules=["embed_tokens", "q_proj"])
    else:  # each expert sees tokens out of their rows
        new_role(roles, "one", 1).causal.config.num_experts = 4
    assert not roles.can_mix(["one", "base"])
