"""Rank-stabilised LoRA and LoRA+, against PEFT's own."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from configs.load import load_experiment
from configs.schema import Sft
from pipeline.planning.start_adapters import adapter_fault
from stages.models.role_models import RoleModels
from stages.models.roles import Role
from stages.training.optimizer import adamw
from tests.support.roles import new_role, tiny_roles
from tests.support.runs import TINY, run_stage


def learned(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "sft/adapter/adapter_model.safetensors")


def test_the_rates_of_lora_plus_are_those_of_peft(tiny_folder, tiny_tokenizer) -> None:
    """Each parameter has the rate that PEFT's optimizer gives it."""
    models = RoleModels((new_role(tiny_roles(), "policy", 3), tiny_tokenizer))
    ours = adamw(models, {Role.POLICY: 1e-3}, Sft(lora_plus_ratio=16))
    names = {parameter: name for name, parameter in models.role_parameters(Role.POLICY).items()}
    rates = {names[one]: group["lr"] for group in ours.param_groups for one in group["params"]}
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    theirs = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16)
    of_peft = {parameter: name for name, parameter in model.named_parameters()}
    expected = {
        ("lora_B" in of_peft[one]): group["lr"] for group in theirs.param_groups for one in group["params"]
    }
    assert {("lora_B" in name): rate for name, rate in rates.items()} == pytest.approx(expected)
    assert set(rates) == set(models.role_parameters(Role.POLICY))


def test_b_moves_as_many_times_as_far(tmp_path) -> None:
    """In the first step A has no gradient, because B is zero, and Adam moves B by its rate."""
    options = ("sft.max_steps=1", "sft.scheduler=constant", "sft.warmup_ratio=0", "sft.weight_decay=0")
    for ratio in (1, 8):
        run_stage("sft", tmp_path / str(ratio), *options, f"sft.lora_plus_ratio={ratio}")
    once, eight = learned(tmp_path / "1"), learned(tmp_path / "8")
    for name in once:
        factor = 8 if "lora_B" in name else 1
        torch.testing.assert_close(eight[name], factor * once[name], rtol=1e-3, atol=1e-7)


def test_rslora_divides_by_the_root_of_the_rank(tmp_path) -> None:
    run_stage("sft", tmp_path, "sft.max_steps=1", "adapter.rslora=true")
    config = json.loads((tmp_path / "sft/adapter/adapter_config.json").read_text())
    assert config["use_rslora"] is True
    roles = tiny_roles()
    roles.add_from(Role.POLICY, tmp_path / "sft/adapter", trainable=False)
    layers = [layer for layer in roles.modules() if isinstance(layer, LoraLayer)]
    scalings = {layer.scaling[Role.POLICY] for layer in layers}
    adapter = load_experiment(TINY).adapter
    assert scalings == {adapter.alpha / math.sqrt(adapter.r)}
    fault = adapter_fault(load_experiment(TINY), "sft", tmp_path / "sft/adapter")
    assert (
        fault
        == "its use_rslora is true, and all stages share one adapter section. Set adapter.rslora to true."
    )
