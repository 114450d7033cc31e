"""Adapters that no role can be, made of those of the tiny model; none of their files is unpickled."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from stages.sampling.merged_model import merged_weight
from tests.contract.bad_inputs.entry import files
from tests.contract.bad_inputs.model_damage import (
    change_weight,
    check_refusal,
    damaged,
    edit,
    halve,
    plant,
    remove,
    rename_weights,
    repeat_key,
    with_one,
    write,
)
from tests.support.roles import role_output, tiny_roles

ADAPTER, CONFIG, HEAD = "adapter_model.safetensors", "adapter_config.json", "head.safetensors"
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA_A, LORA_B = (f"base_model.model.model.layers.0.self_attn.q_proj.lora_{factor}.weight" for factor in "AB")

ADAPTERS: dict[str, tuple[Any, ...]] = {
    "no weights": ([remove(ADAPTER)], f"it has no {ADAPTER}"),
    "pickle": ([remove(ADAPTER), plant("adapter_model.bin")], f"it has no {ADAPTER}"),
    "no config": ([remove(CONFIG)], "it has no adapter_config.json"),
    "truncated": ([halve(ADAPTER)], f"{ADAPTER} is damaged or cut off"),
    "head": ([write("head.safetensors", b"x")], "head.safetensors is damaged or cut off"),
    "config no JSON": ([write(CONFIG, b"{")], "Expecting property name"),
    "other rank": ([edit(CONFIG, r=8)], "size mismatch"),
    "other layers": (
        [edit(CONFIG, target_modules=["q_proj"])],
        "it holds 28 weights, but on this",
    ),
    "no layers": ([edit(CONFIG, target_modules=["zork"])], "not found in the base model"),
    **{
        f"other method {method}": (
            [edit(CONFIG, peft_type=method)],
            f"{CONFIG}: peft_type is {method!r}, and must be LORA",
        )
        for method in ("ZORK", "IA3", "LOHA", None)
    },
    "layers that are no pattern": ([edit(CONFIG, target_modules="(")], "unterminated subpattern"),
    "layers that are numbers": (
        [edit(CONFIG, target_modules=[1])],
        "target_modules is [1], and",
    ),
    "start that is a number": (
        [edit(CONFIG, init_lora_weights=1)],
        "init_lora_weights is 1, and",
    ),
    "alpha beyond a float": (
        [edit(CONFIG, lora_alpha=10**400)],
        "and at most 1e+09",
    ),
    "NaN": (
        [change_weight(LORA_A, with_one(float("nan")), ADAPTER)],
        f"{ADAPTER}: {LORA_A} holds NaN or inf",
    ),
    "infinity": ([change_weight(LORA_B, with_one(float("inf")), ADAPTER)], f"{LORA_B} holds NaN or infinity"),
    "integers": ([change_weight(LORA_A, Tensor.int, ADAPTER)], f"{LORA_A} holds integers (torch.int32)"),
    "other names": (
        [rename_weights("q_proj", "z_proj", ADAPTER)],
        f"{ADAPTER} holds {LORA_A.replace('q_proj', 'z_proj')}, where this base would have {LORA_A}",
    ),
    "names of another role": (
        [rename_weights(".weight", ".policy.weight", ADAPTER)],
        "where this base would",
    ),
    "names without their head": ([rename_weights("base_model.model.", "", ADAPTER)], "where this base would"),
    "NaN alpha": ([edit(CONFIG, lora_alpha=float("nan"))], f"{CONFIG}: lora_alpha is nan"),
    "infinite alpha": ([edit(CONFIG, lora_alpha=float("inf"))], "lora_alpha is inf"),
    "no alpha": (
        [edit(CONFIG, lora_alpha=0)],
        "lora_alpha is 0, and must be a number above 0",
    ),
    "NaN dropout": ([edit(CONFIG, lora_dropout=float("nan"))], "lora_dropout is nan"),
    "dropout of all": (
        [edit(CONFIG, lora_dropout=1)],
        "lora_dropout is 1, and must be a number at least 0 and below 1",
    ),
    "negative dropout": ([edit(CONFIG, lora_dropout=-0.1)], "lora_dropout is -0.1, and must be"),
    "NaN of a pattern": (
        [edit(CONFIG, alpha_pattern={"q_proj": float("nan")})],
        "alpha_pattern.q_proj is",
    ),
    "PiSSA": (
        [edit(CONFIG, init_lora_weights="pissa")],
        "init_lora_weights is 'pissa', and must be",
    ),
    "DoRA without its lengths": (
        [edit(CONFIG, use_dora=True)],
        "weights, but on this base it would have",
    ),
    "other task": (
        [edit(CONFIG, task_type="SEQ_CLS")],
        "task_type is 'SEQ_CLS', and must be CAUSAL_LM",
    ),
    **{
        f"{key} of another type: {value!r}": (
            [edit(CONFIG, **{key: value})],
            f"{CONFIG}: {key} is {value!r}, and must be {allowed}",
        )
        for key, value, allowed in [
            ("r", "4", "a whole number above 0"),
            ("r", 4.0, "a whole number above 0"),
            ("r", True, "a whole number above 0"),
            ("r", None, "a whole number above 0"),
            ("lora_alpha", True, "a number above 0"),
            ("lora_alpha", "8", "a number above 0"),
            ("lora_alpha", [8], "a number above 0"),
            ("lora_dropout", "0", "a number at least 0"),
            ("lora_dropout", False, "a number at least 0"),
            ("use_rslora", "no", "true or false"),
            ("use_rslora", 1, "true or false"),
            ("use_rslora", None, "true or false"),
            ("use_dora", "yes", "true or false"),
            ("use_dora", 1, "true or false"),
            ("fan_in_fan_out", "false", "true or false"),
            ("inference_mode", 0, "true or false"),
            ("target_modules", None, "a pattern or a list of names"),
            ("target_modules", [], "a pattern or a list of names"),
            ("target_modules", {"q_proj": 1}, "a pattern or a list of names"),
            ("exclude_modules", [["q_proj"]], "a pattern, a list of names"),
            ("exclude_modules", 3, "a pattern, a list of names"),
            ("layers_to_transform", "0", "the number of a layer"),
            ("layers_to_transform", [0.0], "the number of a layer"),
            ("layers_to_transform", [True], "the number of a layer"),
            ("layers_pattern", 1, "a pattern, a list of names"),
            ("init_lora_weights", "true", "true, false, gaussian"),
            ("init_lora_weights", None, "true, false, gaussian"),
            ("task_type", ["CAUSAL_LM"], "CAUSAL_LM or null"),
            ("peft_type", ["LORA"], "LORA"),
            ("base_model_name_or_path", ["a"], "text or null"),
            ("revision", 3, "text or null"),
        ]
    },
    **{
        f"slow pattern in {key}": (
            [edit(CONFIG, **{key: value})],
            f"{CONFIG}: {key} is",
            "and matching it takes too long; write a list of names",
        )
        for key, value in {
            "target_modules": r"([a-z._0-9]+)+!",
            "exclude_modules": r"(.|[a-z])*!",
        }.items()
    },
    "slow pattern of layers": (
        [edit(CONFIG, layers_to_transform=[0], layers_pattern=[r"([a-z._0-9]+)+!"])],
        "layers_pattern is",
        "and matching it takes too long",
    ),
    "a key twice": ([repeat_key(CONFIG, "r", 8)], f"{CONFIG}: r is given twice"),
    **{
        key: (
            [edit(CONFIG, **{key: value})],
            f"{CONFIG}: {key} is {value!r}, and a role has no",
        )
        for key, value in {
            "alora_invocation_tokens": [1, 2],
            "bias": "lora_only",
            "lora_bias": True,
            "rank_pattern": {"q_proj": 2},
            "alpha_pattern": {"q_proj": 16},
            "modules_to_save": ["lm_head"],
            "trainable_token_indices": [3],
            "layer_replication": [[0, 2], [1, 2]],
            "target_parameters": ["mlp.experts"],
            "use_qalora": True,
            "loftq_config": {"loftq_bits": 4},
            "of_a_later_version": "on",
        }.items()
    },
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter(name, adapters, tmp_path):
    damages, *parts = ADAPTERS[name]
    folder = tmp_path / "adapter"
    before = damaged(adapters["sft"], folder, damages)
    roles = tiny_roles()
    check_refusal(lambda: roles.add_from("policy", folder, trainable=True), folder, before, *parts)


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (change_weight("weight", with_one(float("nan")), HEAD), f"{HEAD}: weight holds NaN or infinity"),
        (change_weight("bias", with_one(float("inf")), HEAD), f"{HEAD}: bias holds NaN or infinity"),
        (change_weight("weight", Tensor.long, HEAD), f"{HEAD}: weight holds integers"),
        (
            change_weight("weight", lambda weight: weight[:, :32].contiguous(), HEAD),
            "size mismatch for weight",
        ),
        (rename_weights("bias", "offset", HEAD), "Missing key(s) in state_dict"),
        (remove(HEAD), "No such file or directory"),
    ],
)
def test_head(damage, part, adapters, tmp_path):
    folder = tmp_path / "adapter"
    before = damaged(adapters["rm"], folder, [damage])
    roles = tiny_roles()
    check_refusal(lambda: roles.add_head_from("critic", folder), folder, before, part)
    if (folder / HEAD).exists():
        check_refusal(lambda: roles.add_from("reward", folder, trainable=True), folder, before, part)


@pytest.mark.parametrize(
    ("metadata", "part"),
    [
        ({"end": "2"}, f"{HEAD}: read is None, and must be token ids"),
        ({"read": "2 3"}, f"{HEAD}: end is None, and must be token ids"),
        ({"end": "2 3", "read": ""}, f"{HEAD}: end is '2 3', and must be one token id"),
        ({"end": "2", "read": "3 -1"}, "read is '3 -1', and must be token ids"),
        ({"end": "2", "read": "384"}, "read is '384', and must be token ids"),
    ],
)
def test_what_a_head_reads(metadata, part, adapters, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(adapters["rm"], folder)
    save_file(load_file(folder / HEAD), folder / HEAD, metadata)
    before = files(folder)
    roles = tiny_roles()
    check_refusal(lambda: roles.add_from("reward", folder, trainable=True), folder, before, part)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_rslora": True},
        {"lora_dropout": 0.5, "init_lora_weights": "gaussian"},
        {"target_modules": ".*_proj", "exclude_modules": None},
        {"layers_to_transform": [0], "layers_pattern": "layers", "target_modules": LAYERS},
        {"exclude_modules": ["q_proj"]},
    ],
)
def test_adapter_of_any_plain_kind_is_what_peft_makes_of_it(changes, adapters, tiny_folder, tmp_path):
    folder = tmp_path / "adapter"
    damaged(adapters["sft"], folder, [edit(CONFIG, **changes)])
    kept = {
        name: weight
        for name, weight in load_file(folder / ADAPTER).items()
        if not ("layers_to_transform" in changes and "layers.1." in name)
        and not (changes.get("exclude_modules") and "q_proj" in name)
    }
    save_file(kept, folder / ADAPTER, {"format": "pt"})
    roles = tiny_roles(quantization="none").eval()
    roles.add_from("policy", folder, trainable=False)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected = PeftModel.from_pretrained(base, str(folder)).eval()(input_ids=ids).logits
        torch.testing.assert_close(role_output(roles, "policy", ids), expected)
        for ours, theirs in zip(lora_layers(roles.causal), lora_layers(base), strict=True):
            theirs.merge()
            torch.testing.assert_close(merged_weight(ours, "policy"), theirs.get_base_layer().weight.data)


def lora_layers(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]
