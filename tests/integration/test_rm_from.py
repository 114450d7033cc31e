"""`rm.from`: the reward model starts from one that TRL, PEFT or another run made, or is used as it is."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from stages.models.queries import ScalarQuery
from stages.models.roles import Role
from stages.models.start_adapters import add_start
from tests.support.roles import tiny_roles
from tests.support.runs import (
    KILLED_STAGE,
    assert_same_result,
    copy_upstream,
    metrics,
    rows,
    run_stage,
    stage_arguments,
    start_warm,
)
from tests.support.starts import train_with_trl

ADAPTER, HEAD = "adapter_model.safetensors", "head.safetensors"
SCORE = "base_model.model.score.weight"
AS_IT_IS = "rm.max_steps=0"


@pytest.fixture(scope="module")
def by_trl(tiny_folder: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_with_trl(tiny_folder, tiny_tokenizer, tmp_path_factory.mktemp("trl"))


@pytest.fixture(scope="module")
def untrained(by_trl: Path, trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose reward model is TRL's, as it is."""
    run_dir = copy_upstream(trained_run, "rm", tmp_path_factory.mktemp("run"))
    run_stage("rm", run_dir, f"rm.from={by_trl}", AS_IT_IS)
    return run_dir


def weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of the adapter, without the head."""
    return {name: tensor for name, tensor in load_file(folder / ADAPTER).items() if name != SCORE}


def test_scores_are_those_of_the_classifier(by_trl: Path, tiny_folder: Path) -> None:
    roles = tiny_roles(quantization="none")
    add_start(roles, Role.REWARD, "rm.from", by_trl, trainable=False)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_folder, num_labels=1, dtype=torch.float32)
    classifier = PeftModel.from_pretrained(base, str(by_trl)).eval()
    ids = torch.arange(10, 90).view(4, 20)
    with torch.no_grad():
        scores = roles.eval()(ScalarQuery(Role.REWARD, ids, torch.ones_like(ids)))
        torch.testing.assert_close(scores[:, -1:], classifier(input_ids=ids).logits)
    head: Any = roles.heads[Role.REWARD]
    assert head.bias.item() == 0


def test_without_steps_it_is_evaluated_and_normalised(untrained: Path, by_trl: Path) -> None:
    figures, result = metrics(untrained / "rm/manifest.json"), untrained / "rm/adapter"
    assert figures["steps"] == 0 and figures["accuracy_n"] == 8
    before, after = weights(by_trl), weights(result)
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)
    head, mean, deviation = load_file(result / HEAD), figures["score_mean"], figures["score_std"]
    torch.testing.assert_close(head["weight"] * deviation, load_file(by_trl / ADAPTER)[SCORE])
    assert head["bias"].item() == pytest.approx(-mean / deviation, rel=1e-5)
    assert [row["step"] for row in rows(untrained / "rm/metrics.jsonl")] == [0], "one evaluation"


def test_the_manifest_has_its_digest(untrained: Path) -> None:
    assert len(json.loads((untrained / "rm/manifest.json").read_text())["sources"]["rm.from"]) == 64


def test_ppo_trains_against_it(untrained: Path, by_trl: Path) -> None:
    run_stage("ppo", untrained, f"rm.from={by_trl}", AS_IT_IS, "ppo.iterations=1")
    assert {"rm_score_sft", "rm_score_ppo"} <= metrics(untrained / "ppo/manifest.json").keys()


def test_training_continues_from_it(by_trl: Path, trained_run: Path, tmp_path: Path) -> None:
    run_dir = copy_upstream(trained_run, "rm", tmp_path / "run")
    output = run_stage("rm", run_dir, f"rm.from={by_trl}", "rm.max_steps=2").stdout
    before, after = weights(by_trl), weights(run_dir / "rm/adapter")
    steps = [float((after[name] - before[name]).abs().max()) for name in before]
    assert min(steps) > 0 and max(steps) < 0.01
    assert "adapter.target_modules is not used" in output
    assert "with this chat template, '\\n'. This program reads it at '<|im_end|>'" in output


def test_killed_and_resumed_is_as_if_never_killed(by_trl: Path, trained_run: Path, tmp_path: Path) -> None:
    override, runs = f"rm.from={by_trl}", [tmp_path / name for name in ("whole", "killed")]
    for run_dir in runs:
        copy_upstream(trained_run, "rm", run_dir)
    run_stage("rm", runs[0], override)
    killed = start_warm([KILLED_STAGE, "3", *stage_arguments("rm", runs[1], override)])
    assert killed.returncode == -signal.SIGKILL, killed.stdout
    assert "resumes from step-000002" in run_stage("rm", runs[1], override).stdout
    assert_same_result(runs[1] / "rm", runs[0] / "rm")


def test_a_reward_model_of_another_run_ranks_as_it_did_there(trained_run: Path, tmp_path: Path) -> None:
    """Its scores have mean 0 and deviation 1 already, so normalising them again changes little."""
    run_dir = copy_upstream(trained_run, "rm", tmp_path / "run")
    run_stage("rm", run_dir, f"rm.from={trained_run / 'rm/adapter'}", AS_IT_IS)
    there, here = (metrics(path / "rm/manifest.json") for path in (trained_run, run_dir))
    assert here["accuracy"] == there["accuracy"]
    assert here["margin"] == pytest.approx(there["margin"] / there["score_std"], rel=1e-4)
    assert here["score_mean"] == pytest.approx(0, abs=1e-5)
    assert here["score_std"] == pytest.approx(1, rel=1e-5)
    for name, tensor in load_file(trained_run / "rm/adapter" / HEAD).items():
        torch.testing.assert_close(
            load_file(run_dir / "rm/adapter" / HEAD)[name], tensor, rtol=1e-4, atol=1e-5
        )


def test_a_folder_that_changed_is_noticed(by_trl: Path, trained_run: Path, tmp_path: Path) -> None:
    run_dir, copy = copy_upstream(trained_run, "rm", tmp_path / "run"), tmp_path / "copy"
    shutil.copytree(by_trl, copy)
    run_stage("rm", run_dir, f"rm.from={copy}", AS_IT_IS)
    assert "finished with this" in run_stage("rm", run_dir, f"rm.from={copy}", AS_IT_IS).stdout
    (copy / "README.md").write_text("another")
    output = run_stage("rm", run_dir, f"rm.from={copy}", AS_IT_IS).stdout
    assert "finished, but these changed: rm.from: the file's content is not what it was" in output
