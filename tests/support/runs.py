"""Runs of the tiny experiment in their own processes, and the files that they leave."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from configs.schema import UPSTREAM, Stage
from launch.deepspeed_command import free_port
from tests.support import warm

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "configs" / "tiny.yaml"
RUN_STAGE = ROOT / "launch" / "run_stage.py"
KILLED_STAGE = Path(__file__).with_name("killed_stage.py")
TIMING = ("padding", "tokens_per_second", "wall_seconds", "peak_memory_bytes", "time/", "perf/")
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def environment() -> dict[str, str]:
    """One thread per process, on the CPU. PATH starts with the programs of this Python."""
    inherited = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    path = f"{Path(sys.executable).parent}{os.pathsep}{inherited.get('PATH', '')}"
    return inherited | {"PATH": path} | warm.READ_AT_IMPORT


def start(
    command: Sequence[str | Path], timeout: float = 300, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in its own session, and capture its output."""
    return subprocess.run(
        list(map(str, command)),
        env=environment() | dict(variables or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        start_new_session=True,
    )


def start_warm(
    command: Sequence[str | Path], ranks: int = 0, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """As `start`, for a Python script: one process, or `ranks` of them. It need not import the libraries."""
    return warm.run(list(map(str, command)), ranks, environment(), timeout)


def launcher(ranks: int) -> list[str]:
    """`deepspeed` for `ranks` ranks, on a free port."""
    deepspeed = str(Path(sys.executable).parent / "deepspeed")
    return [deepspeed, "--num_accelerators", str(ranks), "--master_port", str(free_port())]


def stage_arguments(stage: str, run_dir: Path, *overrides: str) -> list[str]:
    return ["--stage", stage, "--config", str(TINY), "--run-dir", str(run_dir), *overrides]


def run_stage(
    stage: str, run_dir: Path, *overrides: str, status: int = 0, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run `launch/run_stage.py` without a launcher. It must end with `status`."""
    result = start_warm([RUN_STAGE, *stage_arguments(stage, run_dir, *overrides)], timeout=timeout)
    assert result.returncode == status, result.stdout
    return result


def rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file without timings."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return [untimed(json.loads(line)) for line in lines]


def metrics(manifest: Path) -> dict[str, float]:
    """The metrics of a manifest without timings."""
    return untimed(json.loads(manifest.read_text())["metrics"])


def untimed(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without timings."""
    return {name: value for name, value in row.items() if not name.startswith(TIMING)}


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copy_upstream(run_dir: Path, stage: Stage, target: Path) -> Path:
    """A run directory with copies of the stages that `stage` starts from."""
    target.mkdir(parents=True, exist_ok=True)
    for upstream in UPSTREAM[stage]:
        shutil.copytree(run_dir / upstream, target / upstream)
    return target


def assert_same_result(actual: Path, expected: Path) -> None:
    """Two folders of one stage hold bit-identical figures and adapters."""
    assert rows(actual / "metrics.jsonl") == rows(expected / "metrics.jsonl")
    assert rows(actual / "samples.jsonl") == rows(expected / "samples.jsonl")
    assert files(actual / "adapter") == files(expected / "adapter")
    assert metrics(actual / "manifest.json") == metrics(expected / "manifest.json")


def checkpoint_tensors(folder: Path, step: int, part: str = "engine") -> dict[str, Tensor]:
    """The tensors of one part of the checkpoint of `step` in the stage's `folder`."""
    tensors = load_file(folder / "checkpoints" / f"step-{step:06d}" / "tensors.safetensors")
    return {
        name.removeprefix(f"{part}/"): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{part}/")
    }


def checkpoint_values(folder: Path, step: int, part: str) -> dict[str, Any]:
    """The JSON values of one part of the checkpoint of `step` in the stage's `folder`."""
    state = json.loads((folder / "checkpoints" / f"step-{step:06d}" / "state.json").read_text())
    values: dict[str, Any] = state["parts"][part]
    return values
