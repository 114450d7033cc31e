"""A role's output depends on its own weights and tokens alone: not on other roles, slices or padding."""

import pytest
import torch

from configs.schema import Adapter, Base
from stages.models.base import disable_dropout, load_base
from stages.models.queries import ScalarQuery, TokenQuery
from stages.models.roles import Role, Roles, ScalarHead
from tests.support.role_probes import ALL_ROLES, IDS, MASK, output_of
from tests.support.roles import CPU, PPO_ROLES, TRAINED, role_output, tiny_roles


def test_dropout_by_functions_is_disabled_too(fresh):
    """Attention's share is a number that the layers hand to a function, in training alone."""
    for module in fresh.modules():
        if "attention_dropout" in vars(module):
            module.attention_dropout = 0.5
    assert not torch.equal(output_of(fresh, "policy"), output_of(fresh, "policy"))
    disable_dropout(fresh)
    assert fresh.training and torch.equal(output_of(fresh, "policy"), output_of(fresh, "policy"))


def test_base_role_is_the_model_without_adapters(adapters):
    plain = load_base(Base(model="tiny-random", quantization="nf4", compute_dtype="float32"), CPU)
    with torch.no_grad():
        expected = plain(input_ids=IDS, attention_mask=MASK).logits
    roles = Roles(plain)
    for role, source in PPO_ROLES.items():
        roles.add_from(role, adapters[source], trainable=role in TRAINED)
    assert not torch.allclose(output_of(roles, "policy"), expected, atol=0.1)
    assert torch.equal(output_of(roles, Role.BASE), expected)
    output_of(roles, "critic")
    assert torch.equal(output_of(roles, Role.BASE), expected)


def test_fresh_adapter_starts_as_the_base_and_a_trained_one_is_itself_again_after_others(four):
    roles = tiny_roles()
    expected = output_of(roles, Role.BASE)
    roles.add_new("policy", Adapter(r=4))
    assert torch.equal(output_of(roles, "policy"), expected)
    outputs = {role: output_of(four, role) for role in ALL_ROLES}
    for role in reversed(ALL_ROLES):
        assert torch.equal(output_of(four, role), outputs[role])


def test_policy_is_the_reference_and_critic_the_reward_model_before_any_update(four):
    assert torch.equal(output_of(four, "policy"), output_of(four, "reference"))
    assert torch.equal(output_of(four, "critic"), output_of(four, "reward"))


def test_changing_the_policy_leaves_the_reference_alone(fresh):
    outputs = {role: output_of(fresh, role) for role in ALL_ROLES}
    with torch.no_grad():
        for parameter in fresh.role_parameters("policy").values():
            parameter.mul_(1.5)
    changed = [role for role in ALL_ROLES if not torch.equal(output_of(fresh, role), outputs[role])]
    assert changed == ["policy"]


@pytest.mark.parametrize("role", ALL_ROLES)
@pytest.mark.parametrize("start", [1, 4, 5])
def test_starting_later_is_a_slice_of_the_whole(role, start, four):
    whole, part = output_of(four, role), output_of(four, role, start)
    assert part.shape[1] == IDS.shape[1] - start
    torch.testing.assert_close(part, whole[:, start:], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("role", ALL_ROLES)
def test_padding_on_either_side_changes_nothing(role, four):
    whole = output_of(four, role)
    pad = torch.zeros(2, 3, dtype=torch.long)
    with torch.no_grad():
        left = role_output(four, role, torch.cat([pad, IDS], 1), torch.cat([pad, MASK], 1))[:, 3:]
        right = role_output(four, role, torch.cat([IDS, pad], 1), torch.cat([MASK, pad], 1))[:, :-3]
    torch.testing.assert_close(left, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(right, whole, rtol=1e-5, atol=1e-5)


def test_positions_are_counted_from_the_mask(four):
    """Rotary embeddings would not tell: they see differences of positions alone. Learned ones would."""
    seen: list[list] = []
    hook = four.causal.model.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(inputs["position_ids"].tolist()), with_kwargs=True
    )
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0]])
    four(TokenQuery("policy", IDS, mask, targets=IDS[:, 1:]))
    four(ScalarQuery("reward", IDS, mask))
    hook.remove()
    assert seen == [[[0, 0, 0, 1, 2, 3], [0, 0, 1, 2, 2, 2]]] * 2


def test_packed_sequences_are_as_if_alone(four):
    """Two examples in one row, under a block-diagonal mask and with positions that begin again."""
    ids = IDS.reshape(1, -1)
    positions = torch.arange(6).repeat(2)[None]
    blocks = torch.block_diag(*[torch.ones(6, 6).tril()] * 2).bool()[None, None]
    for role in ("policy", "reward"):
        with torch.no_grad():
            packed = role_output(four, role, ids, blocks, positions)
        expected = output_of(four, role)
        torch.testing.assert_close(packed.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)


def test_scalar_head_by_hand():
    head = ScalarHead(3, CPU)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
        head.bias.fill_(0.25)
    hidden = torch.tensor([[[1.0, 1.0, 1.0], [2.0, 0.0, 4.0]]], dtype=torch.bfloat16)
    found = head(hidden)
    assert found.tolist() == [[-0.25, 4.25]]  # 1 - 2 + 0.5 + 0.25; 2 + 2 + 0.25
    assert found.dtype == torch.float32


def test_new_head_is_small_random_and_from_torchs_seed():
    torch.manual_seed(0)
    first = ScalarHead(9_999, CPU)
    assert first.weight.std().item() == pytest.approx(0.01, rel=0.05)  # 1 / sqrt(10,000)
    assert first.bias.tolist() == [0.0]
    torch.manual_seed(0)
    assert torch.equal(ScalarHead(9_999, CPU).weight, first.weight)
