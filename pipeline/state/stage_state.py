"""What became of a stage: the status in its manifest, or that it was killed before it could write another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from configs.schema import Stage
from pipeline.state.manifest import Manifest

State = Literal["running", "finished", "failed", "interrupted", "killed"]
PREDICATES: dict[State, str] = {
    "running": "is still running",
    "finished": "has finished",
    "failed": "failed",
    "interrupted": "was interrupted",
    "killed": "was killed",
}


def state_of(manifest: Manifest, is_locked: Callable[[Stage], bool]) -> State:
    """The state of a stage. A killed one still says that it is running, and holds no lock.

    Args:
        is_locked: whether a process runs a stage; that of the run directory.
    """
    if manifest.status == "running" and not is_locked(manifest.stage):
        return "killed"
    return manifest.status


def nobody(_: Stage) -> bool:
    """Stands in for `is_locked` where this process holds the lock."""
    return False
