"""What became of a stage: the status in its manifest, or that it was killed; and whether it fits its base."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from configs.schema import Experiment, Stage
from pipeline.state.manifest import BaseModelId, Manifest

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


def base_fault(
    config: Experiment, manifest: Manifest, present: Mapping[str, str] | None = None
) -> str | None:
    """Why the base of `config` is not the one that a stage was trained on; None if it is.

    Args:
        present: hashes of what the stage reads now (see `source_hashes`); None leaves the base's files aside.
    """
    base, stage = config.base_of(manifest.stage), manifest.stage
    own, key = BaseModelId.of(base), f"{base.key}.model"
    if manifest.base != own:
        return f"{base.key} is {own}, but stage {stage} was trained on {manifest.base}"
    if present is not None and manifest.sources.get(key, present.get(key)) != present.get(key):
        return f"the files of {own.model} are not those that stage {stage} was trained on"
    return None


def nobody(_: Stage) -> bool:
    """Stands in for `is_locked` where this process holds the lock."""
    return False
