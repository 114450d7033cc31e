"""DoRA as a role: what PEFT computes, in the forward, in the merged weight, and in files."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from configs.errors import UserError
from configs.schema import Adapter, Base
from pipeline.planning.base_shapes import find_base
from pipeline.planning.memory import adapter_parameters
from stages.sampling.merged_model import MergedCopy, merged_weight
from tests.support.roles import new_role, role_output, save_role_of, tiny_roles

IDS = torch.arange(3, 40)[None]


def dora_roles(quantization: str = "none") -> Any:
    roles = new_role(tiny_roles(quantization=quantization), "policy", 3, dora=True)
    return new_role(roles, "plain", 4).eval()


def lora_layers(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def test_a_new_role_is_the_base(tiny_tokenizer) -> None:
    """Its lengths are those of the base's own rows."""
    roles = tiny_roles()
    roles.add_new("policy", Adapter(r=4, dora=True))
    roles.eval()
    with torch.no_grad():
        policy, base = role_output(roles, "policy", IDS), role_output(roles, "base", IDS)
    torch.testing.assert_close(policy, base)


def test_peft_reads_the_files_and_computes_the_same(tiny_folder, tiny_tokenizer, tmp_path) -> None:
    roles = dora_roles()
    folder = save_role_of(roles, "policy", tmp_path / "adapter", tiny_tokenizer)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, str(folder)).eval()
    with torch.no_grad():
        expected = theirs(input_ids=IDS).logits
        torch.testing.assert_close(role_output(roles, "policy", IDS), expected)
        assert not torch.allclose(role_output(roles, "base", IDS), expected, atol=0.1)
        merged = theirs.merge_and_unload()
        for ours, layer in zip(lora_layers(roles.causal), _linears(merged), strict=True):
            torch.testing.assert_close(merged_weight(ours, "policy"), layer.weight.data)


def _linears(model: Any) -> list[Any]:
    return [
        m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in name
    ]


def test_an_adapter_of_peft_is_a_role(tiny_folder, tiny_tokenizer, tmp_path) -> None:
    torch.manual_seed(5)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], use_dora=True)
    config.task_type = "CAUSAL_LM"
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.eval().save_pretrained(tmp_path / "theirs")
    roles = tiny_roles(quantization="none")
    roles.add_from("policy", tmp_path / "theirs", trainable=True)
    roles.eval()
    with torch.no_grad():
        torch.testing.assert_close(role_output(roles, "policy", IDS), model(input_ids=IDS).logits)
    again = save_role_of(roles, "policy", tmp_path / "ours", tiny_tokenizer)
    before, after = (load_file(f / "adapter_model.safetensors") for f in (tmp_path / "theirs", again))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_the_merged_copy_computes_the_role(quantization: str) -> None:
    roles = dora_roles(quantization)
    copy = MergedCopy(roles)
    with torch.no_grad():
        for role in ("policy", "plain", "base"):
            actual, expected = copy.load_role(role)(input_ids=IDS).logits, role_output(roles, role, IDS)
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_rows_of_one_batch_are_not_mixed_with_it() -> None:
    """The fused product knows A and B only; other engines then take one role at a time."""
    roles = dora_roles()
    assert not roles.can_mix(["policy", "base"])
    assert not roles.can_mix(["plain", "policy"])
    assert roles.can_mix(["plain", "base"])


def test_its_lengths_train_and_freeze_with_the_role() -> None:
    roles = dora_roles()
    lengths = [p for name, p in roles.role_parameters("policy").items() if "magnitude" in name]
    assert len(lengths) == len(lora_layers(roles.causal))
    assert all(parameter.requires_grad for parameter in lengths)
    roles.activate("policy")
    role_output(roles, "policy", IDS).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in lengths)


def test_an_int8_layer_is_refused() -> None:
    with pytest.raises(UserError, match=r"adapter\.dora: .*q_proj is an 8-bit layer"):
        tiny_roles(quantization="int8").add_new("policy", Adapter(r=4, dora=True))


def test_an_embedding_is_refused(tiny_folder, tmp_path) -> None:
    with pytest.raises(UserError, match=r"adapter\.dora: .*embed_tokens is an embedding"):
        tiny_roles().add_new("policy", Adapter(r=4, dora=True, target_modules=["embed_tokens", "q_proj"]))
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    config = LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"], use_dora=True, task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"DoRA: .*embed_tokens is an embedding"):
        tiny_roles().add_from("policy", tmp_path, trainable=True)


def test_the_estimate_counts_its_parameters() -> None:
    shape = find_base(Base(model="tiny-random")).shape
    assert shape is not None
    roles = tiny_roles()
    roles.add_new("policy", Adapter(r=4, dora=True))
    counted = sum(parameter.numel() for parameter in roles.role_parameters("policy").values())
    assert adapter_parameters(shape, 4, None, dora=True) == counted
