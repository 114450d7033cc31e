"""A saved role is a plain PEFT folder, and loads as the same role."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from configs.schema import Base
from stages.models.base import load_base
from stages.models.roles import Role
from tests.support.role_probes import IDS, MASK, output_of
from tests.support.roles import CPU, new_role, save_role_of, tensors_of, tiny_roles


def base_folder() -> str:
    from stages.models.base import model_folder

    return model_folder(Base(model="tiny-random"))


def test_saved_adapter_is_a_plain_peft_adapter(adapters, roles_of_ppo):
    base = load_base(Base(model="tiny-random", quantization="nf4", compute_dtype="float32"), CPU)
    model = PeftModel.from_pretrained(base, str(adapters["sft"])).eval()
    with torch.no_grad():
        logits = model(input_ids=IDS, attention_mask=MASK).logits
    assert torch.equal(logits, output_of(roles_of_ppo, "policy"))
    assert AutoTokenizer.from_pretrained(adapters["sft"]).eos_token_id == 2


@pytest.mark.parametrize(("role", "head"), [("policy", False), ("reward", True)])
@pytest.mark.parametrize("other", ["policy", "reward", "critic", "sft"])
def test_role_that_is_saved_and_loaded_as_another_is_the_same(role, head, other, tiny_tokenizer, tmp_path):
    source = new_role(tiny_roles(), role, 3, head=head)
    expected = output_of(source, role)
    folder = save_role_of(source, role, tmp_path / "adapter", tiny_tokenizer)
    roles = new_role(tiny_roles(), "first", 4)  # so that it is not the first adapter either
    roles.add_from(other, folder, trainable=False)
    assert torch.equal(output_of(roles, other), expected)
    assert (other in roles.heads) == head
    saved_again = save_role_of(roles, other, tmp_path / "again", tiny_tokenizer)
    for name in ("adapter_model.safetensors", *["head.safetensors"] * head):
        assert (saved_again / name).read_bytes() == (folder / name).read_bytes()


def test_saving_changes_nothing_in_the_roles(changeable_roles, tiny_tokenizer, tmp_path):
    before = (
        tensors_of(changeable_roles, "policy"),
        {n: p.requires_grad for n, p in changeable_roles.named_parameters()},
    )
    expected = output_of(changeable_roles, "policy")
    save_role_of(changeable_roles, "policy", tmp_path / "adapter", tiny_tokenizer)
    after = (
        tensors_of(changeable_roles, "policy"),
        {n: p.requires_grad for n, p in changeable_roles.named_parameters()},
    )
    assert after[1] == before[1]
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert torch.equal(output_of(changeable_roles, "policy"), expected)


def test_adapter_folder_remembers_its_config(adapters, roles_of_ppo):
    config = roles_of_ppo.peft_config("policy")
    assert (config.r, config.lora_alpha, config.task_type) == (4, 8.0, "CAUSAL_LM")
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base_folder()), str(adapters["rm"])
    )
    assert model.peft_config["default"].base_model_name_or_path == "tiny-random"


def test_names_of_roles_reach_the_libraries_as_plain_strings(tiny_tokenizer, tmp_path):
    """PEFT and torch write role names into names of tensors and files."""
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
