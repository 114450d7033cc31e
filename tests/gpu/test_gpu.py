"""The three stages in bf16, one after another in this process. They use NCCL if there is a CUDA GPU."""

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
from stages.models.role_models import RoleModels
from stages.models.roles import Roles
from stages.sampling.decoding import Noise, sample
from stages.training.engine import Engine
from tests.support.roles import base_hash
from tests.support.runs import TINY, rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OVERRIDES = ("base.compute_dtype=bfloat16", "ppo.epochs=1", "ppo.minibatches=1", "ppo.micro_batch_size=3")


def base_of(models: RoleModels) -> Roles:
    """The roles over the policy's base. A reward model may have its own base."""
    return models if isinstance(models, Roles) else models.policy_base


@pytest.fixture(scope="module")
def hashes() -> dict[str, str]:
    """Hashes of the base's bytes before and after each stage."""
    return {}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, hashes: dict[str, str]) -> Iterator[Path]:
    """A finished run. Every stage ran in this process."""
    folder = tmp_path_factory.mktemp("gpu")
    initialize = Engine.__init__
    engines: list[Engine] = []

    def initialize_and_hash(self: Engine, *args, **kwargs) -> None:
        hashes[f"{len(engines)} before"] = base_hash(base_of(args[0]))
        engines.append(self)
        initialize(self, *args, **kwargs)

    environment = dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "__init__", initialize_and_hash)
        for number, stage in enumerate(STAGES):
            config = load_experiment(TINY, OVERRIDES)
            assert run_stage(Request(config, RunDirectory(folder)), stage) == 0
            hashes[f"{number} after"] = base_hash(base_of(engines[number].models))
            assert engines[number].ranks.device.type == DEVICE
            assert next(engines[number].models.parameters()).dtype == torch.bfloat16
    yield folder
    os.environ.clear()
    os.environ.update(environment)


def test_every_stage_finishes(run_dir: Path) -> None:
    for stage in STAGES:
        manifest = json.loads((run_dir / stage / "manifest.json").read_text())
        assert manifest["status"] == "finished"
        assert manifest["metrics"]["peak_memory_bytes"] > 0


def test_base_keeps_its_bytes(run_dir: Path, hashes: dict[str, str]) -> None:
    assert len(hashes) == 2 * len(STAGES)
    assert len(set(hashes.values())) == 1


def test_sft_learns(run_dir: Path) -> None:
    losses = [row["eval/loss"] for row in rows(run_dir / "sft" / "metrics.jsonl") if "eval/loss" in row]
    assert losses[-1] < losses[0]


def test_ppo_starts_with_kl_zero_and_ratio_one(run_dir: Path) -> None:
    first = next(row for row in rows(run_dir / "ppo" / "metrics.jsonl") if "objective/kl" in row)
    assert first["objective/kl"] == 0.0
    assert first["val/ratio"] == 1.0
    assert first["policy/approxkl_avg"] == 0.0 and first["policy/clipfrac_avg"] == 0.0


def test_equal_logits_give_equal_samples_on_every_device() -> None:
    logits = torch.randn(64, 5_000, generator=torch.Generator().manual_seed(0))
    actual, expected = (
        sample(logits.to(device), Noise(range(64), torch.device(device))) for device in (DEVICE, "cpu")
    )
    assert torch.equal(actual[0].cpu(), expected[0])
    torch.testing.assert_close(actual[1].cpu(), expected[1])
