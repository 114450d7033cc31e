"""Checkpoints: whole tensors in safetensors, everything else in JSON, sealed by hashes, never a pickle.

A checkpoint is written to a temporary folder, synced, sealed with the SHA-256 of every file, and
renamed. One that is not sealed, or does not match its seal, is passed over for the next older one.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from configs.paths import stays_inside
from data.files import PARTIAL, remove_folder, sha256, sync
from stages.modeling import HEAD_FILE

SEAL = "seal.json"
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


class SealedFolder:
    """A folder that appears under its name whole, synced and sealed, or not at all."""

    def __init__(self, final: Path) -> None:
        self.final = final
        self.partial = final.with_name(f".{final.name}{PARTIAL}")

    def __enter__(self) -> Path:
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        return self.partial

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._publish()
        finally:
            shutil.rmtree(self.partial, ignore_errors=True)

    def _publish(self) -> None:
        files = sorted(path for path in self.partial.rglob("*") if path.is_file())
        hashes = {path.relative_to(self.partial).as_posix(): sha256(path) for path in files}
        (self.partial / SEAL).write_text(json.dumps(hashes, indent=1))
        for path in (*self.partial.rglob("*"), self.partial):
            sync(path)
        if self.final.exists():
            remove_folder(self.final)
        self.partial.rename(self.final)
        sync(self.final.parent)


def seal_fault(folder: Path) -> str | None:
    """What is wrong with a sealed folder, naming the file; None if it is as it was written."""
    try:
        hashes = json.loads((folder / SEAL).read_text())
    except FileNotFoundError:
        return f"{SEAL} is missing"
    except (OSError, ValueError, RecursionError):
        return f"{SEAL} is damaged"
    if not isinstance(hashes, dict):
        return f"{SEAL} is damaged"
    for name, expected in hashes.items():
        if not stays_inside(name):
            return f"{SEAL} is damaged (it names {name!r:.60}, which is outside the folder)"
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256(folder / name) != expected:
            return f"{name} is damaged (its SHA-256 is not the sealed one)"
    return None


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


def save_adapter(
    final: Path,
    tensors: dict[str, Tensor],
    role: str,
    config: LoraConfig,
    base_model: str,
    tokenizer: PreTrainedTokenizerBase,
    card: str,
) -> None:
    """Write a role as a plain PEFT folder, with `head.safetensors` where it has a scalar head.

    Args:
        tensors: the role's parameters by their names in `Roles`.
        base_model: name of the base to record in `adapter_config.json`.
        card: text of the model card.
    """
    adapter = {
        name.replace("causal.", "base_model.model.", 1).replace(f".{role}", ""): tensor
        for name, tensor in tensors.items()
        if name.startswith("causal.")
    }
    head = {name.rsplit(".", 1)[1]: tensor for name, tensor in tensors.items() if name.startswith("heads.")}
    with SealedFolder(final) as folder:
        # Not save_file, which writes files that only their owner can read.
        (folder / "adapter_model.safetensors").write_bytes(save(adapter, {"format": "pt"}))
        config.base_model_name_or_path = base_model
        config.inference_mode = True
        if not isinstance(config.target_modules, str):
            # A set, whose order changes with every process; the same adapter is to be the same bytes.
            config.target_modules = sorted(config.target_modules or [])
        config.save_pretrained(str(folder))
        if head:
            (folder / HEAD_FILE).write_bytes(save(head))
        tokenizer.save_pretrained(str(folder))
        (folder / "README.md").write_text(card)
