"""Checkpoints: whole tensors in safetensors, everything else in JSON, sealed by hashes, never a pickle.

A checkpoint is written to a temporary folder, synced, sealed with the SHA-256 of every file, and
renamed. One that is not sealed, or does not match its seal, is passed over for the next older one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from data.storage.files import remove_folder
from data.storage.sealed_folder import SealedFolder, seal_fault

STATE = {"step": int, "run": str, "optimizer_steps": int, "base": str, "memory": dict, "records": dict}


@dataclass(frozen=True)
class Checkpoint:
    """A sealed checkpoint: `step` optimizer steps (PPO: iterations) are done."""

    folder: Path
    step: int
    state: dict[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.folder / "tensors.safetensors")


def save_checkpoint(
    root: Path,
    step: int,
    tensors: dict[str, Tensor],
    state: dict[str, Any],
    keep: int,
    best: int | None = None,
) -> None:
    """Write `root/step-NNNNNN`, then keep it, the `keep - 1` before it, and that of step `best`. Rank 0 only.

    Checkpoints of later steps go: they were passed over when the stage resumed from an older one.
    """
    final = checkpoint_folder(root, step)
    with SealedFolder(final) as folder:
        (folder / "tensors.safetensors").write_bytes(save(tensors))
        (folder / "state.json").write_text(json.dumps({"step": step, **state}, indent=1))
    earlier = sorted(folder for folder in root.glob("step-*") if folder <= final)
    for folder in set(root.glob("step-*")) - {*earlier[-keep:], checkpoint_folder(root, best or step)}:
        remove_folder(folder)


def checkpoint_folder(root: Path, step: int) -> Path:
    return root / f"step-{step:06d}"


def newest_checkpoint(root: Path, run: str) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint of `run` under `root` that is whole, and a line on each newer that is not."""
    complaints: list[str] = []
    for folder in sorted(root.glob("step-*"), reverse=True):
        found = read_checkpoint(folder, run)
        if isinstance(found, Checkpoint):
            return found, complaints
        complaints.append(f"passed over the checkpoint {folder}: {found}")
    return None, complaints


def read_checkpoint(folder: Path, run: str) -> Checkpoint | str:
    """The checkpoint of `run` in `folder`, or what is wrong with it."""
    fault = seal_fault(folder) or _content_fault(folder, run)
    if fault:
        return fault
    state = json.loads((folder / "state.json").read_text())
    return Checkpoint(folder, state.pop("step"), state)


def _content_fault(folder: Path, run: str) -> str | None:
    """What is wrong with the files of a checkpoint whose seal is whole, but which `run` did not write."""
    try:
        state = json.loads((folder / "state.json").read_text())
        with safe_open(folder / "tensors.safetensors", "pt"):
            pass
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        return f"its content is damaged ({error!s:.200})"
    if not isinstance(state, dict) or not all(
        isinstance(state.get(key), kind) for key, kind in STATE.items()
    ):
        return f"state.json is damaged (it must hold {', '.join(STATE)})"
    if state["run"] != run:
        manifest = folder.parents[1] / "manifest.json"
        return f"it is of another run ({state['run']:.40}) than {manifest} ({run:.40})"
    return None
