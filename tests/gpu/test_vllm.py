"""vLLM beside the training model on a CUDA GPU: both give the same log-probabilities after each update."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from configs.load import load_experiment
from configs.schema import STAGES
from pipeline.planning.request import Request
from pipeline.stage_process import run_stage
from pipeline.state.run_directory import RunDirectory
from tests.support.runs import TINY, rows

pytest.importorskip("vllm_bnb_plugin", reason="needs the extra vllm")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

OVERRIDES = ("base.compute_dtype=auto", "ppo.rollout.engine=vllm", "ppo.learning_rate=1e-3")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run with vLLM rollouts. Every stage ran in this process."""
    folder = tmp_path_factory.mktemp("vllm")
    environment = dict(os.environ)
    request = Request(load_experiment(TINY, OVERRIDES), RunDirectory(folder))
    for stage in STAGES:
        assert run_stage(request, stage) == 0
    yield folder
    os.environ.clear()
    os.environ.update(environment)


def test_stage_finishes(run_dir: Path) -> None:
    manifest = json.loads((run_dir / "ppo" / "manifest.json").read_text())
    assert manifest["status"] == "finished"


def test_vllm_says_what_the_model_that_trains_says(run_dir: Path) -> None:
    """A stale adapter, another temperature or a shifted token would exceed the limit by far."""
    logged = rows(run_dir / "ppo" / "metrics.jsonl")
    differences = [row["rollout/logprob_difference"] for row in logged if "rollout/logprob_difference" in row]
    assert len(differences) > 1
    assert max(differences) < 0.05
