"""A role's output depends only on its weights and tokens, not on other roles, slices or padding."""

import pytest
import torch

from configs.schema import Adapter, Base
from stages.models.base import disable_dropout, load_base
from stages.models.queries import ScalarQuery, TokenQuery
from stages.models.roles import Role, Roles, ScalarHead
from tests.support.role_probes import ALL_ROLES, IDS, MASK, output_of
from tests.support.roles import CPU, PPO_ROLES, TRAINED, role_output, tiny_roles


def test_dropout_by_functions_is_disabled_too(changeable_roles):
    """Attention's dropout is a number that layers pass to a function in training."""
    for module in changeable_roles.modules():
        if "attention_dropout" in vars(module):
            module.attention_dropout = 0.5
    assert not torch.equal(output_of(changeable_roles, "policy"), output_of(changeable_roles, "policy"))
    disable_dropout(changeable_roles)
    assert changeable_roles.training and torch.equal(
        output_of(changeable_roles, "policy"), output_of(changeable_roles, "policy")
    )


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


def test_fresh_adapter_starts_as_the_base_and_a_trained_one_is_itself_again_after_others(roles_of_ppo):
    roles = tiny_roles()
    expected = output_of(roles, Role.BASE)
    roles.add_new("policy", Adapter(r=4))
    assert torch.equal(output_of(roles, "policy"), expected)
    outputs = {role: output_of(roles_of_ppo, role) for role in ALL_ROLES}
    for role in reversed(ALL_ROLES):
        assert torch.equal(output_of(roles_of_ppo, role), outputs[role])


def test_policy_is_the_reference_and_critic_the_reward_model_before_any_update(roles_of_ppo):
    assert torch.equal(output_of(roles_of_ppo, "policy"), output_of(roles_of_ppo, "reference"))
    assert torch.equal(output_of(roles_of_ppo, "critic"), output_of(roles_of_ppo, "reward"))


def test_changing_the_policy_leaves_the_reference_alone(changeable_roles):
    outputs = {role: output_of(changeable_roles, role) for role in ALL_ROLES}
    with torch.no_grad():
        for parameter in changeable_roles.role_parameters("policy").values():
            parameter.mul_(1.5)
    changed = [
        role for role in ALL_ROLES if not torch.equal(output_of(changeable_roles, role), outputs[role])
    ]
    assert changed == ["policy"]


@pytest.mark.parametrize("role", ALL_ROLES)
@pytest.mark.parametrize("start", [1, 4, 5])
def test_starting_later_is_a_slice_of_the_whole(role, start, roles_of_ppo):
    full, part = output_of(roles_of_ppo, role), output_of(roles_of_ppo, role, start)
    assert part.shape[1] == IDS.shape[1] - start
    torch.testing.assert_close(part, full[:, start:], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("role", ALL_ROLES)
def test_padding_on_either_side_changes_nothing(role, roles_of_ppo):
    expected = output_of(roles_of_ppo, role)
    pad = torch.zeros(2, 3, dtype=torch.long)
    with torch.no_grad():
        padded_left = role_output(roles_of_ppo, role, torch.cat([pad, IDS], 1), torch.cat([pad, MASK], 1))[
            :, 3:
        ]
        padded_right = role_output(roles_of_ppo, role, torch.cat([IDS, pad], 1), torch.cat([MASK, pad], 1))[
            :, :-3
        ]
    torch.testing.assert_close(padded_left, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(padded_right, expected, rtol=1e-5, atol=1e-5)


def test_positions_are_counted_from_the_mask(roles_of_ppo):
    """Rotary embeddings only see differences of positions, and would hide a fault. Learned ones would not."""
    positions: list[list] = []
    hook = roles_of_ppo.causal.model.register_forward_pre_hook(
        lambda _, __, inputs: positions.append(inputs["position_ids"].tolist()), with_kwargs=True
    )
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0]])
    roles_of_ppo(TokenQuery("policy", IDS, mask, targets=IDS[:, 1:]))
    roles_of_ppo(ScalarQuery("reward", IDS, mask))
    hook.remove()
    assert positions == [[[0, 0, 0, 1, 2, 3], [0, 0, 1, 2, 2, 2]]] * 2


def test_packed_sequences_are_as_if_alone(roles_of_ppo):
    """Two examples in one row, with a block-diagonal mask and positions that restart."""
    ids = IDS.reshape(1, -1)
    positions = torch.arange(6).repeat(2)[None]
    blocks = torch.block_diag(*[torch.ones(6, 6).tril()] * 2).bool()[None, None]
    for role in ("policy", "reward"):
        with torch.no_grad():
            packed = role_output(roles_of_ppo, role, ids, blocks, positions)
        expected = output_of(roles_of_ppo, role)
        torch.testing.assert_close(packed.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)


def test_scalar_head_by_hand():
    head = ScalarHead(3, CPU)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
        head.bias.fill_(0.25)
    hidden = torch.tensor([[[1.0, 1.0, 1.0], [2.0, 0.0, 4.0]]], dtype=torch.bfloat16)
    scalars = head(hidden)
    assert scalars.tolist() == [[-0.25, 4.25]]  # 1 - 2 + 0.5 + 0.25; 2 + 2 + 0.25
    assert scalars.dtype == torch.float32


def test_new_head_is_small_random_and_from_torchs_seed():
    torch.manual_seed(0)
    first = ScalarHead(9_999, CPU)
    assert first.weight.std().item() == pytest.approx(0.01, rel=0.05)  # 1 / sqrt(10,000)
    assert first.bias.tolist() == [0.0]
    torch.manual_seed(0)
    assert torch.equal(ScalarHead(9_999, CPU).weight, first.weight)
