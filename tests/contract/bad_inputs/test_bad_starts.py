"""Folders that no stage can start from, in `sft.from`, `rm.from` and `ppo.from`; none of them is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from configs.load import load_experiment
from pipeline.planning.start_adapters import adapter_fault
from stages.models.base import empty_base
from stages.models.roles import Role, Roles
from stages.models.start_adapters import add_start
from tests.contract.bad_inputs.entry import check_message, experiment, files, tristage, write_rows
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
from tests.support.roles import tiny_roles
from tests.support.runs import TINY
from tests.support.starts import lora

ADAPTER, CONFIG, HEAD = "adapter_model.safetensors", "adapter_config.json", "head.safetensors"
SCORE = "base_model.model.score.weight"
LORA_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture(scope="module")
def classifier(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model as PEFT saves it: an adapter of a sequence classifier with one label."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_folder, num_labels=1, dtype=torch.float32)
    folder = tmp_path_factory.mktemp("classifier") / "adapter"
    get_peft_model(model, lora("SEQ_CLS")).save_pretrained(folder)
    return folder


def add_weight(name: str, *shape: int) -> Any:
    def change(folder: Path) -> None:
        weights = load_file(folder / ADAPTER)
        save_file({**weights, name: torch.ones(shape)}, folder / ADAPTER, {"format": "pt"})

    return change


def drop_weight(name: str) -> Any:
    def change(folder: Path) -> None:
        weights = load_file(folder / ADAPTER)
        del weights[name]
        save_file(weights, folder / ADAPTER, {"format": "pt"})

    return change


# Before any stage: stage, the folder that is damaged, damages, the message.
FOLDERS: dict[str, tuple[Any, ...]] = {
    "a policy": ("rm", "sft", [], "it is no reward model: it has no head.safetensors, and the task_type"),
    "a reward model for SFT": ("sft", "rm", [], "it is a reward model (head.safetensors), not a policy."),
    "a reward model for PPO": ("ppo", "rm", [], "not a policy. Stage rm starts from it with rm.from."),
    "a classifier for PPO": ("ppo", "sft", [edit(CONFIG, task_type="SEQ_CLS")], "(task_type SEQ_CLS in"),
    "no weights": ("ppo", "sft", [remove(ADAPTER)], f"it has no {ADAPTER}. Name the folder of a PEFT LoRA"),
    "pickle": ("rm", "rm", [remove(ADAPTER), plant("adapter_model.bin")], f"it has no {ADAPTER}"),
    "no JSON": ("ppo", "sft", [write(CONFIG, b"{")], f"{CONFIG} cannot be read"),
    "rank": ("rm", "rm", [edit(CONFIG, r=8)], "its r is 8, but adapter.r is 4", "Set adapter.r to 8."),
    "alpha": ("ppo", "sft", [edit(CONFIG, lora_alpha=16)], "Set adapter.alpha to 16."),
    "dropout": ("ppo", "sft", [edit(CONFIG, lora_dropout=0.1)], "Set adapter.dropout to 0.1."),
    "base": (
        *("ppo", "sft", [edit(CONFIG, base_model_name_or_path="smollm2")]),
        "base_model_name_or_path is smollm2, but base.model is tiny-random. Set base.model to the base of",
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folder(name, adapters, tmp_path):
    stage, source, damages, *parts = FOLDERS[name]
    folder = tmp_path / "adapter"
    before = damaged(adapters[source], folder, damages)
    fault = adapter_fault(load_experiment(TINY), stage, folder)
    assert fault is not None
    check_message(fault, *parts)
    assert files(folder) == before and not (tmp_path / "EXECUTED").exists()


@pytest.mark.parametrize(
    ("stage", "part"),
    [
        ("sft", "Name it in base.model"),
        ("rm", "Name a LoRA adapter with a head, such as RUN/rm/adapter. Or write a function or an endpoint"),
        ("ppo", "Name the LoRA adapter that it was merged from"),
    ],
)
def test_a_whole_model(stage, part, tiny_folder):
    fault = adapter_fault(load_experiment(TINY), stage, tiny_folder)
    assert fault is not None
    check_message(fault, "it is a whole model, and a role is a LoRA adapter on the base.", part)


@pytest.mark.parametrize(
    ("base", "named"),
    [
        ("org/Model-1B", "mirror/model-1b"),
        ("org/model", "/home/me/model"),
        ("/data/model", "org/other"),
        ("org/model", None),
        ("tiny-random", "org/other"),
    ],
)
def test_what_may_be_one_base(base, named, adapters, tmp_path):
    folder = tmp_path / "adapter"
    damaged(adapters["sft"], folder, [edit(CONFIG, base_model_name_or_path=named)])
    assert adapter_fault(load_experiment(TINY, [f"base.model={base}"]), "ppo", folder) is None


def test_the_base_of_the_reward_model_is_its_own(adapters, tmp_path):
    folder = tmp_path / "adapter"
    damaged(adapters["rm"], folder, [edit(CONFIG, base_model_name_or_path="org/small")])
    other = load_experiment(TINY, ["rm.base.model=org/large"])
    assert "Set rm.base.model to the base of the adapter" in str(adapter_fault(other, "rm", folder))
    assert adapter_fault(load_experiment(TINY, ["rm.base.model=org/small"]), "rm", folder) is None


# When it is loaded: damages to a classifier's adapter, the message.
CLASSIFIERS: dict[str, tuple[Any, ...]] = {
    "no head": ([drop_weight(SCORE)], f"{ADAPTER}: it has no {SCORE}, the head of the classifier; save it"),
    "head of another name": (
        [rename_weights("model.score", "model.classifier", ADAPTER)],
        f"it has no {SCORE}",
    ),
    "two labels": (
        [change_weight(SCORE, lambda weight: weight.repeat(2, 1), ADAPTER)],
        f"{ADAPTER}: {SCORE} has 2 labels, and a reward model has 1; train it with num_labels=1",
    ),
    "head of another base": (
        [change_weight(SCORE, lambda weight: weight[:, :32].contiguous(), ADAPTER)],
        f"{SCORE} has a width of 32, and the hidden states of this base have 64",
    ),
    "flat head": ([change_weight(SCORE, torch.Tensor.flatten, ADAPTER)], "has the shape [64], and must have"),
    "NaN": ([change_weight(SCORE, with_one(float("nan")), ADAPTER)], f"{SCORE} holds NaN or infinity"),
    "integers": ([change_weight(SCORE, torch.Tensor.int, ADAPTER)], f"{SCORE} holds integers"),
    "bias of two": ([add_weight("base_model.model.score.bias", 2)], "must have [1]"),
    "LoRA on the head": (
        [add_weight("base_model.model.score.lora_A.weight", 4, 64)],
        "it holds base_model.model.score.lora_A.weight, and a head has only weight and bias",
    ),
    "other layers": ([edit(CONFIG, target_modules=["q_proj"])], "it holds 8 weights, but on this base"),
    "layers of another base": ([edit(CONFIG, target_modules=["c_attn"])], "not found in the base model"),
    "NaN in the adapter": (
        [change_weight(LORA_A, with_one(float("nan")), ADAPTER)],
        f"{LORA_A} holds NaN or inf",
    ),
    "other rank": ([edit(CONFIG, r=8)], "size mismatch"),
    "other modules": (
        [edit(CONFIG, modules_to_save=["score", "lm_head"])],
        f"{CONFIG}: modules_to_save is ['lm_head'], and a role has no such thing",
    ),
    "other task": ([edit(CONFIG, task_type="TOKEN_CLS")], f"it has no {HEAD}, so it is no reward model"),
    "a key twice": ([repeat_key(CONFIG, "r", 8)], f"{CONFIG}: r is given twice"),
    "truncated": ([halve(ADAPTER)], f"{ADAPTER} is damaged or cut off"),
    "pickle": ([remove(ADAPTER), plant("adapter_model.bin")], f"it has no {ADAPTER}"),
}


@pytest.mark.parametrize("weights", ["", "without the base's weights"])
@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
def test_classifier(name, weights, classifier, tmp_path):
    """The stage refuses it, and so does the check before any stage, over the layers of the base alone."""
    damages, part = CLASSIFIERS[name]
    folder = tmp_path / "adapter"
    before = damaged(classifier, folder, damages)
    roles = Roles(empty_base(load_experiment(TINY).base)) if weights else tiny_roles()
    check_refusal(lambda: add_start(roles, Role.REWARD, "rm.from", folder), folder, before, "rm.from: ", part)


def test_a_bias_is_taken_over(classifier, tmp_path):
    folder = tmp_path / "adapter"
    damaged(classifier, folder, [add_weight("base_model.model.score.bias", 1)])
    roles = tiny_roles()
    add_start(roles, Role.REWARD, "rm.from", folder)
    head: Any = roles.heads[Role.REWARD]
    assert head.bias.item() == 1 and torch.equal(head.weight, load_file(folder / ADAPTER)[SCORE])


@pytest.mark.usefixtures("material_checks")
@pytest.mark.parametrize("stage", ["rm", "ppo"])
def test_a_later_stage_is_refused_before_the_first_one_trains(stage, classifier, adapters, tmp_path):
    file = experiment(tmp_path)
    for name in ("sft", "rm", "ppo"):
        write_rows(
            tmp_path / f"{name}.jsonl", [{"prompt": f"p{n}", "completions": ["a", "b"]} for n in range(20)]
        )
    source = {"rm": classifier, "ppo": adapters["sft"]}[stage]
    name = {"rm": SCORE, "ppo": LORA_A}[stage]
    damaged(source, tmp_path / "adapter", [change_weight(name, with_one(float("nan")), ADAPTER)])
    short = ("data.max_length=256", "data.max_prompt_length=128", "adapter.r=4", "adapter.alpha=8")
    override = f"{stage}.from={tmp_path / 'adapter'}"
    status, _, stderr = tristage("run", "--config", file, "--run-dir", tmp_path / "run", *short, override)
    assert status == 2 and not (tmp_path / "run").exists()
    check_message(stderr, f"{stage}.from: {tmp_path / 'adapter'}: no adapter", f"{name} holds NaN")
