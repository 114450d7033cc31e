"""A finished run of the tiny experiment, trained once for all test processes."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from configs.schema import STAGES
from tests.support.runs import run_stage


def train_tiny_run(shared: Path) -> Path:
    """The run directory below `shared`. The first process that asks trains; the others wait."""
    run_dir = shared / "trained-run"
    with FileLock(shared / "trained-run.lock"):
        if not (run_dir / "done").exists():
            for stage in STAGES:
                run_stage(stage, run_dir, "ppo.judge=warmth")
            (run_dir / "done").touch()
    return run_dir
