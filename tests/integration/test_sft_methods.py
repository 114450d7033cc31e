"""`sft.method`: each way to fine-tune trains, resumes, and is what PEFT alone makes of its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from configs.load import load_experiment
from data.batches import tokenize
from data.examples import StageData, read_examples
from stages.models.base import load_base, load_tokenizer
from tests.support.runs import (
    KILLED_STAGE,
    TINY,
    assert_same_result,
    metrics,
    rows,
    run_stage,
    stage_arguments,
    start,
    start_warm,
)

METHODS = ("adalora", "ia3", "bitfit", "random_subset", "prefix", "prompt", "p_tuning")
RATE = {"prefix": 1e-2, "prompt": 3e-2, "ia3": 1e-2, "bitfit": 1e-2, "adalora": 1e-2}


def options(method: str) -> tuple[str, ...]:
    rate = f"sft.learning_rate={RATE.get(method, 1e-3)}"
    unquantized = ("base.quantization=none",) if method == "random_subset" else ()
    return (f"sft.method={method}", rate, "sft.scheduler=constant", "sft.warmup_ratio=0", *unquantized)


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """run_of(method): the finished SFT stage, trained once."""
    runs: dict[str, Path] = {}

    def run(method: str) -> Path:
        if method not in runs:
            runs[method] = tmp_path_factory.mktemp(method)
            run_stage("sft", runs[method], *options(method))
        return runs[method]

    return run


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_peft_alone_has_the_loss_of_the_stage(method: str, run_of) -> None:
    """Its virtual tokens, scales or biases act in PEFT's forward as they did in ours."""
    run = run_of(method)
    config = load_experiment(TINY, options(method))
    tokenizer = load_tokenizer(config.base)
    source = StageData(config, "sft", lambda _: None)
    held_out = read_examples(source, "demonstrations", tokenize.demonstrations, tokenizer).held_out
    model = PeftModel.from_pretrained(load_base(config.base, torch.device("cpu")), str(run / "sft/adapter"))
    model.eval()
    nats, count = 0.0, 0
    for example in held_out:
        ids = torch.tensor([[*example.prompt_ids, *example.completion_ids]])
        length = len(example.completion_ids)
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -length - 1 : -1]
        logprobs = logits.float().log_softmax(-1).gather(1, ids[0, -length:, None])[:, 0]
        learned = torch.tensor(example.completion_mask[-length:])
        nats -= float(logprobs[learned].sum())
        count += int(learned.sum())
    figures = metrics(run / "sft/manifest.json")
    assert nats / count == pytest.approx(figures["eval_loss"], abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_it_learns(method: str, run_of) -> None:
    losses = [row["eval/loss"] for row in rows(run_of(method) / "sft/metrics.jsonl") if "eval/loss" in row]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", ["adalora", "prefix", "p_tuning"])
def test_killed_it_resumes_bit_for_bit(method: str, run_of, tmp_path) -> None:
    result = start_warm([KILLED_STAGE, "4", *stage_arguments("sft", tmp_path, *options(method))])
    assert result.returncode == -9, result.stdout
    run_stage("sft", tmp_path, *options(method))
    assert_same_result(tmp_path / "sft", run_of(method) / "sft")


def test_adalora_ends_as_lora_from_which_the_reward_model_starts(run_of, tmp_path) -> None:
    run = Path(shutil.copytree(run_of("adalora"), tmp_path / "run"))
    folder = run / "sft/adapter"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8.0)
    columns = [
        tensor.any(0)
        for name, tensor in load_file(folder / "adapter_model.safetensors").items()
        if "lora_B" in name
    ]
    kept = sum(int(column.sum()) for column in columns)
    assert kept == len(columns) * 2, "half of the ranks, wherever they are"
    assert len({int(column.sum()) for column in columns}) > 1, "and not the same number in each layer"
    run_stage("rm", run, *options("adalora"), "rm.max_steps=1")


@pytest.mark.parametrize("method", ["ia3", "prompt"])
def test_what_is_no_role_ends_at_sft(method: str, run_of) -> None:
    """`plan` says so, and `run` trains nothing."""
    run = run_of(method)
    output = run_stage("rm", run, *options(method), status=2).stdout
    assert f"sft.method: {method} ends at SFT: " in output
    assert "--until sft" in output
    assert not (run / "rm").exists()
    command = ("tristage", "export", "--run-dir", run, "--stage", "sft", "--format", "adapter")
    result = start([*command])
    assert result.returncode == 2, result.stdout
    assert f"sft.method is {method}" in result.stdout and "PeftModel.from_pretrained" in result.stdout


def test_whole_runs_are_refused_before_sft(tmp_path) -> None:
    result = start(["tristage", "run", "--config", TINY, "--run-dir", tmp_path / "run", "sft.method=ia3"])
    assert result.returncode == 2, result.stdout
    assert "stage rm: sft.method: ia3 ends at SFT" in result.stdout
    assert not (tmp_path / "run").exists()


def test_zero3_is_refused(tmp_path) -> None:
    zero3 = "deepspeed.config=configs/deepspeed/zero3.json"
    output = run_stage("sft", tmp_path / "run", "sft.method=ia3", zero3, status=2).stdout
    assert "sft.method: ia3 does not train under ZeRO 3" in output
    output = run_stage("sft", tmp_path / "run", "sft.method=adalora", zero3, status=2).stdout
    assert "JSON of stage 0" in output
