"""Adapter folders have PEFT's layout and permissions by the umask. Damage is noticed."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors import safe_open

from data.storage.sealed_folder import seal_fault
from stages.models.adapter_files import AdapterInfo, save_adapter
from tests.unit.stages.training.test_checkpoint import flip, names, save


def adapter_folder(folder: Path, tokenizer, *, head: bool = True) -> Path:
    layer = "causal.model.layers.0.self_attn.q_proj"
    tensors = {f"{layer}.lora_{ab}.reward.weight": torch.full((2, 2), i) for i, ab in enumerate("AB", 1)}
    if head:
        tensors |= {"heads.reward.weight": torch.ones(1, 4), "heads.reward.bias": torch.zeros(1)}
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    save_adapter(folder, tensors, AdapterInfo("reward", config, "tiny-random", tokenizer, "# a card\n"))
    return folder


def test_adapter_folder_is_pefts_own_layout(tmp_path, tiny_tokenizer):
    folder = adapter_folder(tmp_path / "adapter", tiny_tokenizer)
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        assert sorted(file.keys()) == [
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
        ]
        assert file.get_tensor("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight").unique() == 2
    with safe_open(folder / "head.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["bias", "weight"]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["inference_mode"]) == ("tiny-random", True)
    assert (folder / "README.md").read_text() == "# a card\n"
    assert {"tokenizer.json", "seal.json"} <= set(names(folder))
    assert seal_fault(folder) is None


def test_adapter_without_head_has_no_head_file(tmp_path, tiny_tokenizer):
    assert "head.safetensors" not in names(adapter_folder(tmp_path / "adapter", tiny_tokenizer, head=False))


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "head.safetensors", "tokenizer.json", "README.md"]
)
def test_damaged_adapter_is_noticed(name, tmp_path, tiny_tokenizer):
    folder = adapter_folder(tmp_path / "adapter", tiny_tokenizer)
    flip(0.5)(folder / name)
    assert name in str(seal_fault(folder))


def test_tokenizer_with_several_chat_templates_is_saved(tmp_path, tiny_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.chat_template = {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}
    folder = adapter_folder(tmp_path / "adapter", tokenizer)
    assert seal_fault(folder) is None
    assert AutoTokenizer.from_pretrained(folder).chat_template == tokenizer.chat_template


@pytest.mark.parametrize(("mask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750)])
def test_permissions_follow_the_umask(mask, file_mode, folder_mode, tmp_path, tiny_tokenizer):
    before = os.umask(mask)
    try:
        folders = [save(tmp_path / "checkpoints", 1), adapter_folder(tmp_path / "adapter", tiny_tokenizer)]
    finally:
        os.umask(before)
    for folder in folders:
        assert stat.S_IMODE(folder.stat().st_mode) == folder_mode
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
        assert modes == dict.fromkeys(modes, file_mode)
