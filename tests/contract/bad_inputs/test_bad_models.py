"""Unusable models and adapters, made from the tiny ones. None of their files is unpickled."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.errors import UserError
from configs.schema import Adapter, Base, Experiment
from stages.models.base import load_base, load_config, load_tokenizer
from stages.models.base_checks import check_fit
from stages.sampling.decoding_batch import check_joinable
from tests.contract.bad_inputs.entry import check_message, files
from tests.support.roles import tiny_roles

CPU = torch.device("cpu")
WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer_config.json"
ADAPTER = "adapter_model.safetensors"
Damage = Callable[[Path], Any]


class Plant:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


def plant(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes(pickle.dumps(Plant(folder.parent / "EXECUTED")))


def edit(name: str, **changes: Any) -> Damage:
    def change(folder: Path) -> None:
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def write(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def remove(*names: str) -> Damage:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink(missing_ok=True)

    return change


def halve(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:5000])


def without_weight(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    del weights["model.layers.0.self_attn.q_proj.weight"]
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def without_end(folder: Path) -> None:
    config = json.loads((folder / TOKENIZER).read_text())
    del config["eos_token"]
    (folder / TOKENIZER).write_text(json.dumps(config))


def with_custom_code(name: str, **changes: Any) -> Damage:
    def change(folder: Path) -> None:
        edit(name, **changes)(folder)
        (folder / "code.py").write_text(f"open({str(folder.parent / 'EXECUTED')!r}, 'w')\nclass C: pass\n")

    return change


BERT = json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": 384}).encode()
OWN_MODEL = {"model_type": "zork", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.C"}}
OWN_TOKENIZER = {"tokenizer_class": "Zork", "auto_map": {"AutoTokenizer": ["code.C", None]}}

BASES: dict[str, tuple[Any, ...]] = {
    "no folder": ([shutil.rmtree], "there is no such folder"),
    "no config": ([remove(CONFIG)], "the folder has no config.json"),
    "config no JSON": ([write(CONFIG, b"{nope")], "is not a valid JSON file"),
    "config a list": ([write(CONFIG, b"[]")], "Should have a `model_type` key"),
    "no weights": ([remove(WEIGHTS)], "the folder has no safetensors"),
    "pickle": (
        [remove(WEIGHTS), plant("pytorch_model.bin")],
        "its weights are a pickle (pytorch_model.bin), which may run code when it is read",
    ),
    "truncated": ([halve(WEIGHTS)], "model.safetensors is damaged or cut off"),
    "garbage": ([write(WEIGHTS, b"x" * 999)], "model.safetensors is damaged or cut off"),
    "empty": ([write(WEIGHTS, b"")], "model.safetensors is damaged or cut off"),
    "unknown kind": (
        [edit(CONFIG, model_type="zork")],
        "has model type `zork` but Transformers does not recog",
    ),
    "encoder": ([write(CONFIG, BERT)], "its config.json says BertForMaskedLM, not a causal language model"),
    "no head": ([edit(CONFIG, architectures=["LlamaModel"])], "says LlamaModel, not a causal language model"),
    "code": ([with_custom_code(CONFIG, **OWN_MODEL)], "it has its own code", "base.trust_remote_code"),
    "missing weight": (
        [without_weight],
        "1 weights of its config.json are missing: model.layers.0.self_attn.q",
    ),
    "more layers": ([edit(CONFIG, num_hidden_layers=3)], "9 weights of its config.json are missing"),
    "other shape": ([edit(CONFIG, hidden_size=32)], "weights do not have the shape of its config.json"),
}
TOKENIZERS: dict[str, tuple[Any, ...]] = {
    "no folder": ([shutil.rmtree], "there is no such folder"),
    "no tokenizer": (
        [remove("tokenizer.json", TOKENIZER)],
        "tokenizer: Couldn't instantiate the backend tokenizer",
    ),
    "empty tokenizer": ([write("tokenizer.json", b"{}")], "tokenizer: "),
    "binary tokenizer": ([write("tokenizer.json", b"\xff" * 99)], "tokenizer: "),
    "no end": ([without_end], "has no end-of-text token (eos_token). Set one in its tokenizer_config.json"),
    "code": ([with_custom_code(TOKENIZER, **OWN_TOKENIZER)], "it has its own code"),
}
ADAPTERS: dict[str, tuple[Any, ...]] = {
    "no weights": ([remove(ADAPTER)], f"it has no {ADAPTER}"),
    "pickle": ([remove(ADAPTER), plant("adapter_model.bin")], f"it has no {ADAPTER}"),
    "no config": ([remove("adapter_config.json")], "it has no adapter_config.json"),
    "truncated": ([halve(ADAPTER)], f"{ADAPTER} is damaged or cut off"),
    "head": ([write("head.safetensors", b"x")], "head.safetensors is damaged or cut off"),
    "config no JSON": ([write("adapter_config.json", b"{")], "Expecting property name"),
    "other rank": ([edit("adapter_config.json", r=8)], "size mismatch"),
    "other layers": (
        [edit("adapter_config.json", target_modules=["q_proj"])],
        "it holds 28 weights, but on this",
    ),
    "no layers": ([edit("adapter_config.json", target_modules=["zork"])], "not found in the base model"),
    "other method": ([edit("adapter_config.json", peft_type="ZORK")], "ZORK"),
}


def damaged(source: Path, target: Path, damages: list[Damage]) -> dict[str, bytes]:
    shutil.copytree(source, target)
    for damage in damages:
        damage(target)
    return files(target) if target.exists() else {}


def check_refusal(action: Callable[[], Any], folder: Path, before: dict[str, bytes], *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        action()
    check_message(str(caught.value), str(folder), *parts)
    assert (files(folder) if folder.exists() else {}) == before
    assert not (folder.parent / "EXECUTED").exists()


@pytest.mark.parametrize("name", BASES)
def test_base(name, tiny_folder, tmp_path):
    damages, *parts = BASES[name]
    folder = tmp_path / "model"
    before = damaged(tiny_folder, folder, damages)
    config = Base(model=str(folder), quantization="none", compute_dtype="float32")
    check_refusal(lambda: load_base(config, CPU), folder, before, "base.model: cannot load", *parts)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizer(name, tiny_folder, tmp_path):
    damages, *parts = TOKENIZERS[name]
    folder = tmp_path / "model"
    before = damaged(tiny_folder, folder, damages)
    check_refusal(lambda: load_tokenizer(Base(model=str(folder))), folder, before, "base.model: ", *parts)


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter(name, adapters, tmp_path):
    damages, *parts = ADAPTERS[name]
    folder = tmp_path / "adapter"
    before = damaged(adapters["sft"], folder, damages)
    roles = tiny_roles()
    check_refusal(lambda: roles.add_from("policy", folder, trainable=True), folder, before, *parts)


def test_pickle_beside_safetensors_is_passed_over(tiny_folder, adapters, tmp_path):
    damaged(tiny_folder, tmp_path / "model", [plant("pytorch_model.bin"), plant("training_args.bin")])
    damaged(adapters["sft"], tmp_path / "adapter", [plant("adapter_model.bin")])
    load_base(Base(model=str(tmp_path / "model"), quantization="none"), CPU)
    tiny_roles().add_from("policy", tmp_path / "adapter", trainable=False)
    assert not (tmp_path / "EXECUTED").exists()


def test_no_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for load in (load_tokenizer, lambda config: load_base(config, CPU)):
        with pytest.raises(UserError) as caught:
            load(Base(model="nobody/no-such-model"))
        check_message(
            str(caught.value), "base.model: cannot load 'nobody/no-such-model'", "a hub id that this"
        )


@pytest.mark.parametrize("module", ["no_such_layer", "model.layers.0"])
def test_target_modules(module):
    with pytest.raises(UserError) as caught:
        tiny_roles().add_new("policy", Adapter(target_modules=[module]))
    check_message(str(caught.value), "adapter.target_modules: ")


def experiment(**data: Any) -> Experiment:
    sources = {stage: {"path": f"{stage}.jsonl"} for stage in ("sft", "rm", "ppo")}
    lengths = {"max_length": 512, "max_prompt_length": 400}
    tree = {"name": "toy", "base": {"model": "tiny-random"}, "data": sources | lengths | data}
    return Experiment.model_validate(tree)


@pytest.mark.parametrize(
    ("stage", "data", "part"),
    [
        (
            "sft",
            {"max_length": 513},
            "data.max_length: 513 tokens are more than the 512 of the context window",
        ),
        ("rm", {}, "data.max_prompt_length + rm.rankings."),
        ("ppo", {}, "data.max_prompt_length + ppo."),
    ],
)
def test_context_window(stage, data, part):
    config = experiment(**data)
    with pytest.raises(UserError) as caught:
        check_fit(config, stage, config.base, load_config(config.base), load_tokenizer(config.base))
    check_message(str(caught.value), part, "Lower it, or use a base with a larger window")


def test_tokenizer_of_another_model(tiny_folder, tmp_path):
    damaged(tiny_folder, tmp_path / "model", [edit(CONFIG, vocab_size=300)])
    config, model_config = experiment(), load_config(Base(model=str(tmp_path / "model")))
    with pytest.raises(UserError) as caught:
        check_fit(config, "sft", config.base, model_config, load_tokenizer(config.base))
    check_message(
        str(caught.value), "has token 383, but the model only 300 embeddings", "copy both from the same"
    )


@pytest.mark.parametrize(
    ("stage", "section", "key"),
    [
        ("rm", {"rm": {"rankings": {"rollout": {"engine": "continuous"}}}}, "rm.rankings.rollout.engine"),
        ("ppo", {"ppo": {"rollout": {"engine": "continuous"}}}, "ppo.rollout.engine"),
        ("best", {"ppo": {"rollout": {"engine": "continuous"}}}, "ppo.rollout.engine"),
        ("best", {"best": {"rollout": {"engine": "continuous"}}}, "best.rollout.engine"),
    ],
)
def test_continuous_sampling_of_a_sliding_window(stage, section, key, tiny_folder, tmp_path):
    damaged(tiny_folder, tmp_path / "model", [edit(CONFIG, sliding_window=8)])
    model_config = load_config(Base(model=str(tmp_path / "model")))
    config = experiment(max_length=256, max_prompt_length=64)
    check_joinable(config, stage, model_config)  # `auto` samples in chunks there
    config = Experiment.model_validate(config.model_dump() | section)
    with pytest.raises(UserError) as caught:
        check_joinable(config, stage, model_config)
    check_message(
        str(caught.value), f"{key}: continuous, but 'tiny-random' does not keep", "Set it to auto or merged"
    )
