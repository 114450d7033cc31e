"""Stages that sample with vLLM itself: on a GPU if there is one, else on the CPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm", reason="make test-vllm installs it")

from configs.load import load_experiment
from configs.schema import STAGES, Stage
from pipeline.planning.request import Request
from pipeline.stage_process import run_stage
from pipeline.state.run_directory import RunDirectory
from tests.support.runs import (
    KILLED_STAGE,
    RUN_STAGE,
    TINY,
    copy_upstream,
    files,
    launcher,
    metrics,
    rows,
    stage_arguments,
    start,
)

STAGE = [sys.executable, str(RUN_STAGE)]
KILLED = [sys.executable, str(KILLED_STAGE)]
GPU = torch.cuda.is_available()
OPTIONS = "{gpu_memory_utilization: 0.15, enforce_eager: true}"
VLLM = f"{{engine: vllm, max_new_tokens: 8, batch_size: 8, vllm: {OPTIONS}}}"
# In bf16, a stale adapter, another temperature or a shifted token would each be off by far more.
LARGEST_DIFFERENCE = 0.05 if GPU else 1e-5


@pytest.fixture(scope="module")
def overrides(wide_folder: Path) -> tuple[str, ...]:
    base = ["base.compute_dtype=auto"] if GPU else [f"base.model={wide_folder}", "base.quantization=none"]
    rankings = f"rm.rankings={{labeller: 'tests.vllm.samples:letters', completions: 2, rollout: {VLLM}}}"
    return (*base, f"ppo.rollout={VLLM}", rankings, "ppo.learning_rate=1e-3", "ppo.eval_steps=null")


@pytest.fixture(scope="module")
def run_dir(overrides: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run, every stage in this process: RM starts vLLM twice and trains in between."""
    folder = tmp_path_factory.mktemp("vllm")
    variables = dict(os.environ)
    request = Request(load_experiment(TINY, overrides), RunDirectory(folder))
    stages: tuple[Stage, ...] = (*STAGES, "best")
    for stage in stages:
        assert run_stage(request, stage) == 0, stage
    yield folder
    os.environ.clear()
    os.environ.update(variables)


def test_vllm_says_what_the_model_that_trains_says(run_dir: Path) -> None:
    logged = rows(run_dir / "ppo" / "metrics.jsonl")
    differences = [row["rollout/logprob_difference"] for row in logged if "rollout/logprob_difference" in row]
    assert len(differences) > 1
    assert 0 < max(differences) < LARGEST_DIFFERENCE


def test_first_ratio_is_one_and_the_policy_moves(run_dir: Path) -> None:
    steps = [row for row in rows(run_dir / "ppo" / "metrics.jsonl") if "objective/kl" in row]
    assert steps[0]["objective/kl"] == 0.0
    assert all(row["objective/kl"] != 0.0 for row in steps[1:])


@pytest.mark.skipif(GPU, reason="sums have another order on a GPU")
def test_resumed_run_is_the_uninterrupted_one(
    run_dir: Path, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    ours = copy_upstream(run_dir, "ppo", tmp_path / "run")
    killed = start([*KILLED, "2", *stage_arguments("ppo", ours, *overrides)])
    assert killed.returncode == -9, killed.stdout
    assert (ours / "ppo" / "checkpoints" / "step-000001").is_dir()
    resumed = start([*STAGE, *stage_arguments("ppo", ours, *overrides)])
    assert resumed.returncode == 0, resumed.stdout
    assert files(ours / "ppo" / "adapter") == files(run_dir / "ppo" / "adapter")
    assert rows(ours / "ppo" / "samples.jsonl") == rows(run_dir / "ppo" / "samples.jsonl")


@pytest.mark.skipif(GPU, reason="needs as many GPUs as ranks")
def test_two_ranks_sample_what_one_does(run_dir: Path, overrides: tuple[str, ...], tmp_path: Path) -> None:
    """Each rank has an engine. Both join the group of the ranks, and leave it to training."""
    ours = copy_upstream(run_dir, "ppo", tmp_path / "run")
    script = STAGE[-1]
    done = start([*launcher(2), script, *stage_arguments("ppo", ours, *overrides)])
    assert done.returncode == 0, done.stdout
    alone, both = (rows(folder / "ppo" / "samples.jsonl") for folder in (run_dir, ours))
    assert [row["response"] for row in both] == [row["response"] for row in alone]
    assert metrics(ours / "ppo" / "manifest.json").keys() == metrics(run_dir / "ppo" / "manifest.json").keys()
