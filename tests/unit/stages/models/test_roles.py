"""Roles over one base: the base stays as it is, the right parameters train, and every way of loading, slicing
and padding gives the same outputs."""

import itertools
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from configs.errors import UserError
from configs.schema import Adapter, Base
from stages.models.base import compute_dtype, disable_dropout, load_base, load_tokenizer
from stages.models.queries import ScalarQuery, TokenQuery
from stages.models.role_models import trainable
from stages.models.roles import Role, Roles, ScalarHead
from tests.support.roles import (
    CPU,
    PPO_ROLES,
    TRAINED,
    base_hash,
    new_role,
    ppo_roles,
    role_output,
    save_role_of,
    tensors_of,
    tiny_roles,
)

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [50, 60, 70, 80, 90, 100]])
MASK = torch.ones_like(IDS)
LAYERS = 2 * 7  # two blocks of q, k, v, o, gate, up, down
ALL = (*PPO_ROLES, Role.BASE)


def out(roles: Roles, role: str, start: int = 0) -> torch.Tensor:
    with torch.no_grad():
        return role_output(roles, role, IDS, MASK, start=start)


def loss_of(roles: Roles, role: str) -> torch.Tensor:
    if role in roles.heads:
        return roles(ScalarQuery(role, IDS, MASK)).square().mean()
    return roles(TokenQuery(role, IDS, MASK, targets=IDS[:, 1:])).logprobs.square().mean()


def gradients(roles: Roles) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in roles.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def four(adapters) -> Roles:
    """PPO's roles, for tests that only look."""
    return ppo_roles(adapters).eval()


@pytest.fixture
def fresh(adapters) -> Roles:
    """PPO's roles, for tests that change them."""
    return ppo_roles(adapters).train()


def test_dropout_by_functions_is_disabled_too(fresh):
    """Attention's share is a number that the layers hand to a function, in training alone."""
    for module in fresh.modules():
        if "attention_dropout" in vars(module):
            module.attention_dropout = 0.5
    assert not torch.equal(out(fresh, "policy"), out(fresh, "policy"))
    disable_dropout(fresh)
    assert fresh.training and torch.equal(out(fresh, "policy"), out(fresh, "policy"))


# Which parameters train


def is_trained(name: str, roles=TRAINED) -> bool:
    """By the look of a name: `....lora_A.policy.weight`, `heads.critic.bias`."""
    parts = name.split(".")
    return parts[-2] in roles and (parts[0] == "heads" or parts[-3] in ("lora_A", "lora_B"))


def test_only_the_intended_parameters_require_gradients(four):
    found = {name for name, parameter in four.named_parameters() if parameter.requires_grad}
    assert found == {name for name, _ in four.named_parameters() if is_trained(name)}
    assert (
        len(found) == 2 * LAYERS * 2 + 2
    )  # A and B of every layer, for two roles; weight and bias of a head


@pytest.mark.parametrize("role", ALL)
def test_activating_and_forwarding_leave_requires_grad_alone(role, four):
    before = {name: parameter.requires_grad for name, parameter in four.named_parameters()}
    four.activate(role)
    assert {name: parameter.requires_grad for name, parameter in four.named_parameters()} == before
    out(four, role)
    role_output(four, role, IDS, MASK)
    assert {name: parameter.requires_grad for name, parameter in four.named_parameters()} == before


@pytest.mark.parametrize("order", list(itertools.permutations(PPO_ROLES)), ids="-".join)
def test_order_of_adding_does_not_matter(order, adapters, bare):
    roles = Roles(bare())
    for role in order:
        roles.add_from(role, adapters[PPO_ROLES[role]], trainable=role in TRAINED)
        present = [name for name, parameter in roles.named_parameters() if parameter.requires_grad]
        assert all(is_trained(name) for name in present)
    assert len(present) == 2 * LAYERS * 2 + 2


@pytest.fixture(scope="module")
def bare():
    """A function that gives an unquantized base quickly."""
    return lambda: load_base(Base(model="tiny-random", quantization="none", compute_dtype="float32"), CPU)


@pytest.mark.parametrize("role", PPO_ROLES)
def test_backward_reaches_the_active_role_alone(role, fresh):
    loss = loss_of(fresh, role)
    assert loss.requires_grad == (role in TRAINED)
    if role in TRAINED:
        loss.backward()
    reached = gradients(fresh)
    assert set(reached) == {
        name for name, _ in fresh.named_parameters() if is_trained(name, {role} & set(TRAINED))
    }
    assert all(gradient.abs().max() > 0 for gradient in reached.values())


def test_role_parameters_are_those_of_the_role(four):
    for role in PPO_ROLES:
        names = set(four.role_parameters(role))
        assert names == {name for name, _ in four.named_parameters() if is_trained(name, {role})}
        assert len(names) == 2 * LAYERS + 2 * (role in ("reward", "critic"))
    assert four.role_parameters(Role.BASE) == {}
    assert set(trainable(four, PPO_ROLES)) == set(trainable(four, TRAINED))
    assert set(trainable(four, ["critic"])) == set(four.role_parameters("critic"))


def test_base_is_frozen_from_the_start(bare):
    base = bare()
    assert all(parameter.requires_grad for parameter in base.parameters())
    assert not any(parameter.requires_grad for parameter in Roles(base).parameters())


@pytest.mark.filterwarnings(
    "ignore:You are trying to modify a model with PEFT", "ignore:Already found a `peft"
)
def test_new_role_leaves_the_others_as_they_were(adapters, bare):
    roles = Roles(bare())
    roles.add_from("reference", adapters["sft"], trainable=False)
    for role in ("policy", "critic"):
        roles.add_new(role, Adapter(r=4))
    found = {name for name, parameter in roles.named_parameters() if parameter.requires_grad}
    assert found == {name for name, _ in roles.named_parameters() if is_trained(name)}
    assert len(found) == 2 * LAYERS * 2


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
    assert torch.equal(out(roles, "policy"), out(roles, "policy")) == (dropout == 0)


def test_target_modules_that_match_nothing():
    with pytest.raises(UserError, match=r"^adapter\.target_modules: .*no_such_layer"):
        tiny_roles().add_new("policy", Adapter(target_modules=["no_such_layer"]))


# fp32, and learning at small rates


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
    assert out(roles, "reward").dtype == torch.float32


# The base's bytes


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_base_stays_the_same_bytes(quantization, checkpointing, adapters):
    roles = ppo_roles(adapters, quantization=quantization, gradient_checkpointing=checkpointing)
    before = base_hash(roles)
    optimizer = torch.optim.AdamW(trainable(roles, TRAINED).values(), lr=1e-2, weight_decay=0.1)
    for training in (True, False):
        roles.train(training)
        for role in ALL:
            out(roles, role)
            assert base_hash(roles) == before, (role, training)
            roles.activate(role)
            roles.causal.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=2, pad_token_id=0)
            assert base_hash(roles) == before, (role, training)
        for role in TRAINED:
            loss_of(roles, role).backward()
        optimizer.step()
        assert base_hash(roles) == before, training
        with torch.inference_mode():
            role_output(roles, "policy", IDS, MASK)
        assert base_hash(roles) == before, training


def test_base_hash_sees_every_part_of_the_quantized_weights():
    roles = tiny_roles()
    weight = roles.causal.model.layers[1].mlp.up_proj.weight
    state = weight.quant_state
    parts = [weight.data, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    parts += [roles.causal.model.norm.weight.data, roles.causal.get_input_embeddings().weight.data]
    seen = {base_hash(roles)}
    for part in parts:
        part.view(-1)[:1].add_(1)
        seen.add(base_hash(roles))
    assert len(seen) == len(parts) + 1


def test_nf4_base_is_quantized_twice_and_a_third_of_the_size():
    roles = tiny_roles()
    layers = [module for module in roles.causal.modules() if type(module).__name__ == "Linear4bit"]
    assert len(layers) == LAYERS
    assert all(
        layer.weight.quant_state.nested and layer.weight.quant_state.quant_type == "nf4" for layer in layers
    )
    assert roles.causal.model.layers[0].mlp.up_proj.weight.numel() == 64 * 128 // 2  # two weights a byte


# Outputs


def test_base_role_is_the_model_without_adapters(adapters):
    plain = load_base(Base(model="tiny-random", quantization="nf4", compute_dtype="float32"), CPU)
    with torch.no_grad():
        expected = plain(input_ids=IDS, attention_mask=MASK).logits
    roles = Roles(plain)
    for role, source in PPO_ROLES.items():
        roles.add_from(role, adapters[source], trainable=role in TRAINED)
    assert not torch.allclose(out(roles, "policy"), expected, atol=0.1)
    assert torch.equal(out(roles, Role.BASE), expected)
    out(roles, "critic")
    assert torch.equal(out(roles, Role.BASE), expected)


def test_fresh_adapter_starts_as_the_base_and_a_trained_one_is_itself_again_after_others(four):
    roles = tiny_roles()
    expected = out(roles, Role.BASE)
    roles.add_new("policy", Adapter(r=4))
    assert torch.equal(out(roles, "policy"), expected)
    outputs = {role: out(four, role) for role in ALL}
    for role in reversed(ALL):
        assert torch.equal(out(four, role), outputs[role])


def test_policy_is_the_reference_and_critic_the_reward_model_before_any_update(four):
    assert torch.equal(out(four, "policy"), out(four, "reference"))
    assert torch.equal(out(four, "critic"), out(four, "reward"))


def test_changing_the_policy_leaves_the_reference_alone(fresh):
    outputs = {role: out(fresh, role) for role in ALL}
    with torch.no_grad():
        for parameter in fresh.role_parameters("policy").values():
            parameter.mul_(1.5)
    changed = [role for role in ALL if not torch.equal(out(fresh, role), outputs[role])]
    assert changed == ["policy"]


@pytest.mark.parametrize("role", ALL)
@pytest.mark.parametrize("start", [1, 4, 5])
def test_starting_later_is_a_slice_of_the_whole(role, start, four):
    whole, part = out(four, role), out(four, role, start)
    assert part.shape[1] == IDS.shape[1] - start
    torch.testing.assert_close(part, whole[:, start:], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("role", ALL)
def test_padding_on_either_side_changes_nothing(role, four):
    whole = out(four, role)
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
        expected = out(four, role)
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


# Gradient checkpointing


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_gives_the_same_gradients(dropout, tiny_tokenizer, tmp_path):
    source = new_role(tiny_roles(), "policy", 0, head=True, dropout=dropout)
    folder = save_role_of(source, "policy", tmp_path / "adapter", tiny_tokenizer)
    found, calls = [], []
    for checkpointing in (False, True):
        roles = tiny_roles(gradient_checkpointing=checkpointing)
        roles.add_from("critic", folder, trainable=True)
        (folder / "head.safetensors").rename(tmp_path / "head")
        roles.add_from("policy", folder, trainable=True)
        shutil.move(tmp_path / "head", folder / "head.safetensors")
        roles.train()
        seen: list[int] = []
        roles.causal.model.layers[0].mlp.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        torch.manual_seed(0)
        for role in ("policy", "critic"):  # each backward before the next forward, as PPO does
            loss_of(roles, role).backward()
        found.append(gradients(roles))
        calls.append(len(seen))
    assert calls == [2, 4]  # checkpointing was at work: every block ran again in backward
    plain, recomputed = found
    assert len(plain) == 2 * 2 * LAYERS + 2
    assert all(gradient.abs().max() > 0 for gradient in plain.values())
    torch.testing.assert_close(recomputed, plain, rtol=1e-6, atol=1e-9)


# Saving and loading


def test_saved_adapter_is_a_plain_peft_adapter(adapters, four):
    base = load_base(Base(model="tiny-random", quantization="nf4", compute_dtype="float32"), CPU)
    model = PeftModel.from_pretrained(base, str(adapters["sft"])).eval()
    with torch.no_grad():
        found = model(input_ids=IDS, attention_mask=MASK).logits
    assert torch.equal(found, out(four, "policy"))
    assert AutoTokenizer.from_pretrained(adapters["sft"]).eos_token_id == 2


@pytest.mark.parametrize(("role", "head"), [("policy", False), ("reward", True)])
@pytest.mark.parametrize("other", ["policy", "reward", "critic", "sft"])
def test_role_that_is_saved_and_loaded_as_another_is_the_same(role, head, other, tiny_tokenizer, tmp_path):
    source = new_role(tiny_roles(), role, 3, head=head)
    expected = out(source, role)
    folder = save_role_of(source, role, tmp_path / "adapter", tiny_tokenizer)
    roles = new_role(tiny_roles(), "first", 4)  # so that it is not the first adapter either
    roles.add_from(other, folder, trainable=False)
    assert torch.equal(out(roles, other), expected)
    assert (other in roles.heads) == head
    again = save_role_of(roles, other, tmp_path / "again", tiny_tokenizer)
    for name in ("adapter_model.safetensors", *["head.safetensors"] * head):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_saving_changes_nothing_in_the_roles(fresh, tiny_tokenizer, tmp_path):
    before = tensors_of(fresh, "policy"), {n: p.requires_grad for n, p in fresh.named_parameters()}
    expected = out(fresh, "policy")
    save_role_of(fresh, "policy", tmp_path / "adapter", tiny_tokenizer)
    after = tensors_of(fresh, "policy"), {n: p.requires_grad for n, p in fresh.named_parameters()}
    assert after[1] == before[1]
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert torch.equal(out(fresh, "policy"), expected)


def test_adapter_folder_remembers_its_config(adapters, four):
    config = four.peft_config("policy")
    assert (config.r, config.lora_alpha, config.task_type) == (4, 8.0, "CAUSAL_LM")
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base_folder()), str(adapters["rm"])
    )
    assert model.peft_config["default"].base_model_name_or_path == "tiny-random"


def base_folder() -> str:
    from stages.models.base import model_folder

    return model_folder(Base(model="tiny-random"))


# Loading the base


@pytest.mark.parametrize("quantization", ["int8", "none"])
def test_other_quantizations_load_forward_and_train(quantization, adapters):
    roles = ppo_roles(adapters, quantization=quantization).train()
    names = {type(module).__name__ for module in roles.causal.modules()}
    assert ("Linear8bitLt" in names) == (quantization == "int8")
    assert out(roles, Role.BASE).shape == (2, 6, 384)
    for role in TRAINED:
        loss_of(roles, role).backward()
    assert set(gradients(roles)) == {name for name, _ in roles.named_parameters() if is_trained(name)}
    assert all(gradient.isfinite().all() for gradient in gradients(roles).values())


def test_quantized_bases_are_near_the_real_one(tiny_folder):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder).eval()
    with torch.no_grad():
        expected = model(input_ids=IDS, attention_mask=MASK).logits
    errors = {}
    for quantization in ("none", "int8", "nf4"):
        found = out(tiny_roles(quantization=quantization).eval(), Role.BASE)
        errors[quantization] = ((found - expected).norm() / expected.norm()).item()
    assert errors["none"] == 0.0
    assert 0 < errors["int8"] < 0.05 < errors["nf4"] < 0.4


def test_samples_use_no_defaults_of_the_model(tiny_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / "generation_config.json").write_text('{"top_k": 5, "temperature": 0.5, "do_sample": true}')
    config = load_base(Base(model=str(folder), quantization="none"), CPU).generation_config
    assert (config.top_k, config.temperature, config.do_sample) == (None, None, None)


def test_model_that_is_not_there(tmp_path):
    missing = Base(model=str(tmp_path / "absent"))
    for load in (lambda: load_base(missing, CPU), lambda: load_tokenizer(missing)):
        with pytest.raises(
            UserError, match=r"^base\.model: cannot load '.*absent'.*smollm2-135m-instruct, tiny-random"
        ):
            load()


def test_tokenizer_without_pad_token_pads_with_its_end(tiny_folder, tmp_path):
    assert load_tokenizer(Base(model="tiny-random")).pad_token_id == 0
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(Base(model=str(tmp_path))).pad_token_id == 2
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no end-of-text token"):
        load_tokenizer(Base(model=str(tmp_path)))


@pytest.mark.parametrize(
    ("choice", "capabilities", "dtype"),
    [
        ("auto", {}, torch.float32),
        ("auto", {"avx512_bf16": False, "avx2": True}, torch.float32),
        ("auto", {"avx512_bf16": True}, torch.bfloat16),
        ("auto", {"amx_bf16": True}, torch.bfloat16),
        ("auto", {"bf16": True}, torch.bfloat16),  # Arm
        ("float32", {"avx512_bf16": True}, torch.float32),
        ("bfloat16", {}, torch.bfloat16),
    ],
)
def test_compute_dtype_on_a_cpu(choice, capabilities, dtype, monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
    assert compute_dtype(choice, CPU) == dtype


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_compute_dtype_on_a_gpu(native, dtype, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: native)
    assert compute_dtype("auto", torch.device("cuda")) == dtype


def test_names_of_roles_reach_the_libraries_as_plain_strings(tiny_tokenizer, tmp_path):
    """PEFT and torch write them into names of tensors and files."""
    roles = new_role(tiny_roles(), Role.POLICY, 0, head=True)
    folder = save_role_of(roles, Role.POLICY, tmp_path / "adapter", tiny_tokenizer)
    roles.add_from(Role.REFERENCE, folder, trainable=False)
    layer = roles.causal.model.layers[0].mlp.up_proj
    keys = [*layer.lora_A, *roles.heads, *roles.role_parameters(Role.POLICY)]
    for role in (Role.POLICY, Role.REFERENCE):
        roles.activate(role)
        keys += layer.active_adapters
    assert {type(key) for key in keys} == {str}
    assert set(layer.lora_A) == set(roles.heads) == {"policy", "reference"}
