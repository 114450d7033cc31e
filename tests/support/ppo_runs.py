"""Short PPO runs of the tiny experiment in the test process, and the files that they leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from configs.load import load_experiment
from stages import ppo
from stages.context import Context
from stages.distributed.ranks import Ranks
from tests.integration.test_ppo_start import Recorder
from tests.support.runs import TINY, checkpoint_tensors, checkpoint_values

SHORT = ("ppo.iterations=3", "ppo.eval_steps=null", "data.ppo.held_out=0", "ppo.save_steps=1")


Run = Callable[..., "PpoRun"]


class PpoRun:
    """A PPO run of the tiny experiment: its logged rows and its checkpoints."""

    def __init__(self, folder: Path, rows: list[Mapping[str, float]]) -> None:
        self.folder, self.rows = folder, rows

    def column(self, name: str) -> list[float]:
        return [row[name] for row in self.rows]

    def tensors(self, step: int) -> dict[str, torch.Tensor]:
        return checkpoint_tensors(self.folder, step)

    def values(self, step: int, part: str) -> dict[str, Any]:
        return checkpoint_values(self.folder, step, part)


@pytest.fixture
def run(adapters: dict[str, Path], ranks: Ranks, tmp_path: Path) -> Run:
    """run("ppo.key=value", ...) trains three iterations and returns the finished run."""

    def train(*overrides: str, folder: str = "ppo", resume: bool = False) -> PpoRun:
        config = load_experiment(TINY, [*SHORT, "ppo.keep_checkpoints=9", *overrides])
        recorder = Recorder()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RANK", "0")
            patch.setenv("WORLD_SIZE", "1")
            patch.setenv("LOCAL_RANK", "0")
            ppo.run(Context(config, "ppo", tmp_path / folder, adapters, recorder, resume, ranks))
        return PpoRun(tmp_path / folder, recorder.metrics)

    return train


def weights(tensors: Mapping[str, torch.Tensor], role: str) -> dict[str, torch.Tensor]:
    return {
        name: tensor for name, tensor in tensors.items() if f".{role}." in name and name.startswith("causal.")
    }


def same_tensors(actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> bool:
    assert actual and actual.keys() == expected.keys()
    return all(torch.equal(tensor, expected[name]) for name, tensor in actual.items())


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")
