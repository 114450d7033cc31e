"""The base is loaded as the config says, and roles do not change its bytes."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from configs.errors import UserError
from configs.schema import Base
from stages.models.base import compute_dtype, load_base, load_tokenizer
from stages.models.role_models import trainable
from stages.models.roles import Role
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
from tests.support.roles import CPU, TRAINED, base_hash, ppo_roles, role_output, tiny_roles

MAPS = Path("/proc/self/maps")


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_base_stays_the_same_bytes(quantization, checkpointing, adapters):
    roles = ppo_roles(adapters, quantization=quantization, gradient_checkpointing=checkpointing)
    before = base_hash(roles)
    optimizer = torch.optim.AdamW(trainable(roles, TRAINED).values(), lr=1e-2, weight_decay=0.1)
    for training in (True, False):
        roles.train(training)
        for role in ALL_ROLES:
            output_of(roles, role)
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


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux lists what a process maps")
def test_a_quantized_base_does_not_keep_its_files_in_memory(tiny_folder, tiny_tokenizer, tmp_path):
    AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    base = Base(model=str(tmp_path), quantization="nf4", compute_dtype="bfloat16")
    model = load_base(base, CPU)
    assert model.get_input_embeddings().weight is model.lm_head.weight
    assert str(tmp_path) not in MAPS.read_text()


def test_base_hash_sees_every_part_of_the_quantized_weights():
    roles = tiny_roles()
    weight = roles.causal.model.layers[1].mlp.up_proj.weight
    state = weight.quant_state
    parts = [weight.data, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    parts += [roles.causal.model.norm.weight.data, roles.causal.get_input_embeddings().weight.data]
    hashes = {base_hash(roles)}
    for part in parts:
        part.view(-1)[:1].add_(1)
        hashes.add(base_hash(roles))
    assert len(hashes) == len(parts) + 1


def test_nf4_base_is_quantized_twice_and_a_third_of_the_size():
    roles = tiny_roles()
    layers = [module for module in roles.causal.modules() if type(module).__name__ == "Linear4bit"]
    assert len(layers) == LAYERS
    assert all(
        layer.weight.quant_state.nested and layer.weight.quant_state.quant_type == "nf4" for layer in layers
    )
    assert roles.causal.model.layers[0].mlp.up_proj.weight.numel() == 64 * 128 // 2  # two weights a byte


@pytest.mark.parametrize("quantization", ["int8", "none"])
def test_other_quantizations_load_forward_and_train(quantization, adapters):
    roles = ppo_roles(adapters, quantization=quantization).train()
    names = {type(module).__name__ for module in roles.causal.modules()}
    assert ("Linear8bitLt" in names) == (quantization == "int8")
    assert output_of(roles, Role.BASE).shape == (2, 6, 384)
    for role in TRAINED:
        loss_of(roles, role).backward()
    assert set(gradients_by_name(roles)) == {name for name, _ in roles.named_parameters() if is_trained(name)}
    assert all(gradient.isfinite().all() for gradient in gradients_by_name(roles).values())


def test_quantized_bases_are_near_the_real_one(tiny_folder):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder).eval()
    with torch.no_grad():
        expected = model(input_ids=IDS, attention_mask=MASK).logits
    errors = {}
    for quantization in ("none", "int8", "nf4"):
        actual = output_of(tiny_roles(quantization=quantization).eval(), Role.BASE)
        errors[quantization] = ((actual - expected).norm() / expected.norm()).item()
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
