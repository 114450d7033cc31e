"""`sft.from`: SFT starts from an adapter that another program wrote, or refuses it before anything trains."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from configs.load import load_experiment
from pipeline.planning.start_adapters import adapter_fault
from pipeline.reporting.warnings import warnings
from pipeline.state.results import read_results
from tests.support.runs import TINY, metrics, rows, run_stage
from tests.support.starts import write_policy


@pytest.fixture(scope="module")
def foreign(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter by PEFT alone: attention only, as TRL's examples have it, with weights that do something."""
    return write_policy(tiny_folder, tmp_path_factory.mktemp("foreign") / "adapter")


@pytest.fixture(scope="module")
def run(foreign: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("from")
    run_stage("sft", run_dir, f"sft.from={foreign}", "sft.max_steps=2")
    return run_dir


def test_training_starts_from_the_adapter(run, trained_run) -> None:
    """Before the first step, its loss is its own: not that of a fresh adapter, which is the base's."""
    fresh, started = (metrics(path / "sft/manifest.json")["eval_loss_before"] for path in (trained_run, run))
    assert abs(started - fresh) > 0.05


def test_the_result_has_its_layers_and_moved(run, foreign) -> None:
    before = load_file(foreign / "adapter_model.safetensors")
    after = load_file(run / "sft/adapter/adapter_model.safetensors")
    assert before.keys() == after.keys()
    steps = [float((after[name] - before[name]).abs().max()) for name in before]
    assert 0 < max(steps) < 0.1
    assert json.loads((run / "sft/adapter/adapter_config.json").read_text())["target_modules"] == [
        "q_proj",
        "v_proj",
    ]


def test_the_reward_model_starts_from_the_result(run, foreign) -> None:
    run_stage("rm", run, f"sft.from={foreign}", "sft.max_steps=2", "rm.max_steps=1")
    names = load_file(run / "rm/adapter/adapter_model.safetensors").keys()
    assert names == load_file(run / "sft/adapter/adapter_model.safetensors").keys()


def test_the_manifest_has_its_digest(run) -> None:
    assert len(json.loads((run / "sft/manifest.json").read_text())["sources"]["sft.from"]) == 64


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("adapter.r=8", "its r is 4, but adapter.r is 8"),
        ("adapter.alpha=16", "its lora_alpha is 8, but adapter.alpha is 16"),
        ("adapter.dropout=0.1", "its lora_dropout is 0.0, but adapter.dropout is 0.1"),
    ],
)
def test_another_shape_is_refused_with_the_line_to_set(foreign, override, reason) -> None:
    fault = adapter_fault(load_experiment(TINY, [override]), "sft", foreign)
    assert fault is not None
    assert reason in fault
    assert "Set adapter." in fault


def test_what_is_no_adapter_is_refused_before_training(foreign, tmp_path) -> None:
    config = load_experiment(TINY)
    copy = shutil.copytree(foreign, tmp_path / "copy")
    assert adapter_fault(config, "sft", copy) is None
    (copy / "adapter_config.json").write_text("{")
    assert "cannot be read" in str(adapter_fault(config, "sft", copy))
    (copy / "adapter_config.json").write_text("[]")
    assert "holds no JSON object" in str(adapter_fault(config, "sft", copy))
    (copy / "adapter_model.safetensors").unlink()
    assert "has no adapter_model.safetensors" in str(adapter_fault(config, "sft", copy))
    assert "no such folder" in str(adapter_fault(config, "sft", tmp_path / "none"))
    result = run_stage("sft", tmp_path / "run", f"sft.from={tmp_path / 'none'}", status=2)
    assert "sft.from" in result.stdout
    assert not (tmp_path / "run" / "sft").exists()


def test_peft_reads_the_result(run, tiny_folder) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    assert PeftModel.from_pretrained(base, str(run / "sft/adapter")).active_adapter == "default"


def test_without_steps_the_result_is_the_adapter_itself(foreign, tmp_path) -> None:
    output = run_stage("sft", tmp_path, f"sft.from={foreign}", "sft.max_steps=0").stdout
    before, after = (
        load_file(folder / "adapter_model.safetensors") for folder in (foreign, tmp_path / "sft/adapter")
    )
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)
    figures = metrics(tmp_path / "sft/manifest.json")
    assert figures["steps"] == 0 and figures["eval_loss"] == figures["eval_loss_before"]
    assert [row["step"] for row in rows(tmp_path / "sft/metrics.jsonl")] == [0], "one evaluation"
    assert "optimizer steps" not in output, "nobody is told to raise sft.epochs"
    assert "It started from the adapter in `sft.from`" in (tmp_path / "sft/adapter/README.md").read_text()
    (only,) = warnings(read_results(tmp_path))
    assert "judged on only 8 held-out prompts" in only


def test_without_steps_and_adapter_the_policy_is_the_base(trained_run, tmp_path) -> None:
    """The stages after it train as from any SFT."""
    options = ("sft.max_steps=0", "ppo.iterations=1")
    run_stage("sft", tmp_path, *options)
    weights = load_file(tmp_path / "sft/adapter/adapter_model.safetensors")
    assert not any(tensor.any() for name, tensor in weights.items() if "lora_B" in name)
    fresh = metrics(trained_run / "sft/manifest.json")["eval_loss_before"]
    assert metrics(tmp_path / "sft/manifest.json")["eval_loss"] == fresh
    run_stage("rm", tmp_path, *options)
    run_stage("ppo", tmp_path, *options)
    texts = rows(tmp_path / "ppo/evaluation.jsonl")
    assert [row["sft"] for row in texts] == [row["base"] for row in texts]
