"""Short PPO runs of the tiny experiment in the test process, and what they leave behind."""

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


Run = Callable[..., "Ran"]


class Ran:
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
    """run("ppo.key=value", ...) trains three iterations and returns what came of it."""

    def start(*overrides: str, folder: str = "ppo", resume: bool = False) -> Ran:
        config = load_experiment(TINY, [*SHORT, "ppo.keep_checkpoints=9", *overrides])
        recorder = Recorder()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RANK", "0")
            patch.setenv("WORLD_SIZE", "1")
            patch.setenv("LOCAL_RANK", "0")
            ppo.run(Context(config, "ppo", tmp_path / folder, adapters, recorder, resume, ranks))
        return Ran(tmp_path / folder, recorder.metrics)

    return start


def weights(tensors: Mapping[str, torch.Tensor], role: str) -> dict[str, torch.Tensor]:
    return {n: t for n, t in tensors.items() if f".{role}." in n and n.startswith("causal.")}


def same(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> bool:
    assert ours and ours.keys() == theirs.keys()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")
