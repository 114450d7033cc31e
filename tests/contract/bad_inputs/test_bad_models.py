"""Models that cannot be the base, made of the tiny one; none of their files is unpickled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.errors import UserError
from configs.schema import Adapter, Base
from stages.models.base import load_base, load_tokenizer
from tests.contract.bad_inputs.entry import check_message
from tests.contract.bad_inputs.model_damage import (
    WEIGHTS,
    Damage,
    change_weight,
    check_refusal,
    damaged,
    edit,
    halve,
    plant,
    remove,
    repeat_key,
    with_one,
    write,
)
from tests.support.roles import new_role, save_role_of, tiny_roles

CPU = torch.device("cpu")
CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
ADAPTER = "adapter_model.safetensors"


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


def index(*files: str) -> Damage:
    """An index that names `files`, beside the weights under a name that transformers does not look for."""

    def change(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "decoy.safetensors")
        shutil.copy(folder / "decoy.safetensors", folder.parent / "outside.safetensors")
        names = load_file(folder / "decoy.safetensors")
        weight_map = {name: files[i % len(files)] for i, name in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": weight_map})
        )

    return change


def add_adapter(folder: Path) -> None:
    """Make the base also the folder of an adapter, as PEFT writes one."""
    roles = new_role(tiny_roles(), "extra", 1)
    tokenizer = load_tokenizer(Base(model="tiny-random"))
    saved = save_role_of(roles, "extra", folder.parent / "extra", tokenizer)
    for name in ("adapter_config.json", ADAPTER):
        shutil.copy(saved / name, folder / name)


NORM = "model.norm.weight"
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
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
    "architecture no list": (
        [edit(CONFIG, architectures="LlamaModel")],
        "its config.json says LlamaModel, not",
    ),
    "architecture no text": (
        [edit(CONFIG, architectures=[1])],
        "config.json: architectures is [1], not a list of names; restore the file",
    ),
    "architectures a number": (
        [edit(CONFIG, architectures=1)],
        "config.json: architectures is 1, not a list",
    ),
    "negative window": (
        [edit(CONFIG, max_position_embeddings=-5)],
        "config.json: max_position_embeddings is -5; restore the file",
    ),
    "no window": (
        [edit(CONFIG, max_position_embeddings=0)],
        "max_position_embeddings is 0; restore the file",
    ),
    "negative window of another name": (
        [write(CONFIG, b'{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_positions": -1}')],
        "config.json: n_positions is -1; restore the file",
    ),
    "no head": ([edit(CONFIG, architectures=["LlamaModel"])], "says LlamaModel, not a causal language model"),
    "code": ([with_custom_code(CONFIG, **OWN_MODEL)], "it has its own code", "base.trust_remote_code"),
    "missing weight": (
        [without_weight],
        "1 weights of its config.json are missing: model.layers.0.self_attn.q",
    ),
    "more layers": ([edit(CONFIG, num_hidden_layers=3)], "9 weights of its config.json are missing"),
    "other shape": ([edit(CONFIG, hidden_size=32)], "weights do not have the shape of its config.json"),
    "fewer layers": (
        [edit(CONFIG, num_hidden_layers=1)],
        "9 weights have no place in the model of its config.json: model.layers.1.",
    ),
    "adapter beside it": (
        [add_adapter],
        "an adapter_config.json lies beside the base, and transformers would add that adapter",
        "merge the adapter into the base, or move it",
    ),
    "adapter beside it without weights": (
        [write("adapter_config.json", b"{}")],
        "an adapter_config.json lies beside the base",
    ),
    "index of a pickle": (
        [index("w.bin"), plant("w.bin")],
        "index.json names 'w.bin', which is not safetensors",
    ),
    "index of a pickle, too": ([index("decoy.safetensors", "w.pt"), plant("w.pt")], "names 'w.pt', which is"),
    "unused index of a pickle": (
        [index("w.bin"), lambda folder: (folder / "decoy.safetensors").rename(folder / WEIGHTS)],
        "index.json names 'w.bin', which is not safetensors",
    ),
    "index outside": (
        [index("../outside.safetensors")],
        "index.json names '../outside.safetensors', which is not in the folder",
    ),
    "index from the root": ([index("/etc/w.safetensors")], "names '/etc/w.safetensors', which is not in the"),
    "index no mapping": (
        [index("w.bin"), write("model.safetensors.index.json", b'{"weight_map": [1]}')],
        "weight_map must map weights to files",
    ),
    "weights of another name": (
        [edit(CONFIG, transformers_weights="adapter_model.bin"), plant("adapter_model.bin")],
        "config.json: transformers_weights names other weights",
    ),
    "NaN weight": (
        [change_weight(Q_PROJ, with_one(float("nan")))],
        f"{WEIGHTS}: {Q_PROJ} holds NaN or infinity",
    ),
    "infinite weight": (
        [change_weight("model.norm.weight", with_one(float("-inf")))],
        "model.norm.weight holds",
    ),
    "zero weight": ([change_weight(Q_PROJ, torch.zeros_like)], f"{Q_PROJ} is all zero; restore the file"),
    "integers": (
        [change_weight(Q_PROJ, lambda weight: weight.mul(100).to(torch.int8))],
        f"{Q_PROJ} holds integers (torch.int8)",
    ),
    "NaN in the second file": (
        [
            change_weight(Q_PROJ, with_one(float("nan"))),
            index("decoy.safetensors"),
        ],
        f"decoy.safetensors: {Q_PROJ} holds NaN",
    ),
    "NaN of RMSNorm": ([edit(CONFIG, rms_norm_eps=float("nan"))], "config.json: rms_norm_eps is nan"),
    "NaN of RoPE": (
        [edit(CONFIG, rope_parameters={"rope_type": "default", "rope_theta": float("nan")})],
        "config.json: rope_parameters.rope_theta is nan; restore the file",
    ),
    "infinite theta": ([edit(CONFIG, rope_theta=float("inf"))], "config.json: rope_theta is inf"),
    "NaN of a list": ([edit(CONFIG, zork=[0, {"a": float("nan")}])], "config.json: zork[1].a is nan"),
    "a key twice": ([repeat_key(CONFIG, "rms_norm_eps", 0.5)], "config.json: 'rms_norm_eps' is given twice"),
    "a key of the tokenizer twice": (
        [repeat_key(TOKENIZER, "eos_token", "<|im_start|>")],
        f"{TOKENIZER}: 'eos_token' is given twice; restore",
    ),
    "a million layers": ([edit(CONFIG, num_hidden_layers=10**6)], "num_hidden_layers is 1000000; restore"),
    "unknown quantization": (
        [edit(CONFIG, quantization_config={"quant_method": "zork"})],
        "config.json: quantization_config says 'zork', but base.quantization is none; give the weights",
    ),
    "other quantization": (
        [edit(CONFIG, quantization_config={"quant_method": "gptq", "bits": 4})],
        "quantization_config says 'gptq'",
    ),
    "quantization of no kind": (
        [edit(CONFIG, quantization_config="nf4")],
        "quantization_config says 'nf4', but",
    ),
    "scales of NaN": (
        [change_weight("model.norm.weight", lambda weight: weight * 0)],
        "its logits do not depend",
    ),
    "overflow": (
        [change_weight(NORM, lambda weight: weight * 1e38 + 1e38)],
        "its logits are NaN or infinite",
    ),
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
    "end of another": (
        [edit(TOKENIZER, eos_token="<|eot_id|>")],
        "(eos_token), '<|eot_id|>', is not in its tokenizer.json",
    ),
    "code": ([with_custom_code(TOKENIZER, **OWN_TOKENIZER)], "it has its own code"),
}


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


def test_pickle_beside_safetensors_is_passed_over(tiny_folder, adapters, tmp_path):
    damaged(tiny_folder, tmp_path / "model", [plant("pytorch_model.bin"), plant("training_args.bin")])
    damaged(adapters["sft"], tmp_path / "adapter", [plant("adapter_model.bin")])
    load_base(Base(model=str(tmp_path / "model"), quantization="none"), CPU)
    tiny_roles().add_from("policy", tmp_path / "adapter", trainable=False)
    assert not (tmp_path / "EXECUTED").exists()


def sharded(folder: Path) -> None:
    """The weights in two files with an index, linked to a folder of blobs as in the hub's cache."""
    weights, blobs = load_file(folder / WEIGHTS), folder.parent.parent / "blobs"
    blobs.mkdir()
    (folder / WEIGHTS).unlink()
    weight_map = {}
    for number, name in enumerate(sorted(weights)):
        weight_map[name] = f"model-0000{number % 2}-of-00002.safetensors"
    for file in set(weight_map.values()):
        save_file({name: weights[name] for name in weights if weight_map[name] == file}, blobs / file)
        (folder / file).symlink_to(f"../../blobs/{file}")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )


def buffers(folder: Path) -> None:
    """What older versions of transformers saved beside the weights."""
    weights = load_file(folder / WEIGHTS)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    weights["transformer.h.0.attn.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.uint8)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()  # it is tied
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize(
    "change",
    [
        sharded,
        buffers,
        edit(CONFIG, time_step_limit=[0.0, float("inf")]),
        edit(CONFIG, quantization_config=None),
    ],
)
def test_sound_base(change, tiny_folder, tmp_path):
    folder = tmp_path / "snapshots" / "model"
    damaged(tiny_folder, folder, [change])
    loaded, whole = (
        load_base(Base(model=str(model), quantization="none", compute_dtype="float32"), CPU)
        for model in (folder, tiny_folder)
    )
    for name, parameter in whole.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name


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
