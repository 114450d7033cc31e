"""The three stages on a CUDA GPU: NF4 kernels, bf16 activations, NCCL."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from configs.load import load_experiment
from configs.schema import STAGES
from pipeline.runner import run_stage
from stages.engine import Engine
from tests.integration.runs import TINY, rows
from tests.roles import base_hash

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

OVERRIDES = ("base.compute_dtype=auto", "ppo.epochs=1", "ppo.minibatches=1", "ppo.micro_batch_size=3")


@pytest.fixture(scope="module")
def hashes() -> dict[str, str]:
    """Of the base's bytes, before and after each stage."""
    return {}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, hashes: dict[str, str]) -> Iterator[Path]:
    """A finished run, every stage in this process."""
    folder = tmp_path_factory.mktemp("gpu")
    start = Engine.__init__
    engines: list[Engine] = []

    def hashed(self: Engine, *args, **kwargs) -> None:
        hashes[f"{len(engines)} before"] = base_hash(args[0])
        engines.append(self)
        start(self, *args, **kwargs)

    environment = dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "__init__", hashed)
        for number, stage in enumerate(STAGES):
            config = load_experiment(TINY, OVERRIDES)
            assert run_stage(config, stage, folder, hint=False) == 0
            hashes[f"{number} after"] = base_hash(engines[number].roles)
            assert engines[number].ranks.device.type == "cuda"
            assert next(engines[number].roles.parameters()).dtype == torch.bfloat16
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
    first = rows(run_dir / "ppo" / "metrics.jsonl")[0]
    assert first["objective/kl"] == 0.0
    assert first["val/ratio"] == 1.0
    assert first["policy/approxkl_avg"] == 0.0 and first["policy/clipfrac_avg"] == 0.0
