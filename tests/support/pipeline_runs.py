"""Run directories made by hand: the files that a stage leaves, without training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from configs.identity import stage_hash
from configs.schema import UPSTREAM, Experiment, Stage
from pipeline.planning.request import Request
from pipeline.state.manifest import BaseModelId, Input, Manifest, Status, fingerprint, now, source_hashes
from pipeline.state.run_directory import RunDirectory
from stages.distributed.ranks import Ranks

TREE: dict[str, Any] = {
    "name": "toy",
    "base": {"model": "tiny-random", "quantization": "nf4"},
    "data": {stage: {"path": f"{stage}.jsonl"} for stage in ("sft", "rm", "ppo")},
    "tracking": {"wandb": "disabled"},
}


def toy(**changes: Any) -> Experiment:
    """The toy experiment; `sft__learning_rate=1e-3` changes `sft.learning_rate`."""
    tree = Experiment.model_validate(TREE).model_dump()
    for key, value in changes.items():
        *sections, last = key.split("__")
        section = tree
        for name in sections:
            section = section[name]
        section[last] = value
    return Experiment.model_validate(tree)


def request(run: Path, config: Experiment | None = None, **options: Any) -> Request:
    return Request(config or toy(), RunDirectory(run), "--run-dir RUN", **options)


@contextmanager
def single_rank(config: Experiment) -> Iterator[Ranks]:
    """Replaces the process group of a stage's process: one rank, which joins nothing."""
    yield Ranks(0, 1, torch.device("cpu"))


def write_stage(
    run: Path,
    stage: Stage,
    status: Status = "finished",
    *,
    config: Experiment | None = None,
    weights: str = "weights",
    checkpoint: int | None = None,
) -> Manifest:
    """Write a stage into `run` as if it had ended with `status`, trained on the adapters there."""
    config = config or toy()
    folder = run / stage
    adapter = folder / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_text(f"{stage} {weights}")
    (adapter / "adapter_config.json").write_text("{}")
    if checkpoint is not None:
        sealed = folder / "checkpoints" / f"step-{checkpoint:06d}"
        sealed.mkdir(parents=True)
        (sealed / "seal.json").write_text("{}")
    inputs: dict[Stage, Input] = {
        upstream: Input(path=f"{upstream}/adapter", sha256=fingerprint(run / upstream / "adapter").sha256)
        for upstream in UPSTREAM[stage]
    }
    manifest = Manifest(
        stage=stage,
        status=status,
        config_hash=stage_hash(config, stage),
        config=config.model_dump(mode="json"),
        base=BaseModelId.of(config.base_of(stage)),
        inputs=inputs,
        sources=source_hashes(config, stage),
        output=fingerprint(adapter) if status == "finished" else None,
        started=now(),
        attempt_started=now(),
    )
    manifest.write(folder / "manifest.json")
    return manifest
