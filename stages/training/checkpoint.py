"""Checkpoints: whole tensors in safetensors, everything else in JSON, sealed by hashes, never a pickle.

A checkpoint holds the state of each part of a stage: the engine, the loop, and what else the recipe names.
It is written to a temporary folder, synced, sealed with the SHA-256 of every file, and renamed. A checkpoint
without a seal, or with files that do not match it, is skipped for the next older one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from data.storage.files import remove_folder
from data.storage.sealed_folder import SealedFolder, seal_fault

FORMAT = 2  # of state.json; 1 had no `parts`
OTHER_VERSION = "another version of Tristage wrote it"
STATE_FILE, TENSORS_FILE = "state.json", "tensors.safetensors"
KEYS = {"format": int, "step": int, "run": str, "base": str, "records": dict, "parts": dict}


@dataclass(frozen=True)
class State:
    """What one part of a stage remembers across a restart.

    Attributes:
        values: anything that JSON holds.
        tensors: whole tensors on the CPU, independent of the number of ranks and of the ZeRO stage.
    """

    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Stateful(Protocol):
    """A part of a stage that checkpoints hold. Every rank must call both methods."""

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


@dataclass(frozen=True)
class Checkpoint:
    """A sealed checkpoint.

    Attributes:
        step: optimizer steps done (PPO: iterations).
        run: id that all attempts at the stage share.
        base: identity of the base, see `base_digest`.
        records: length and hash of the stage's JSON lines, see `data.storage.records`.
    """

    folder: Path
    step: int
    run: str
    base: str
    records: dict[str, Any]
    _values: dict[str, dict[str, Any]]

    def part(self, name: str) -> State:
        """The state of one part, empty if the checkpoint has no such part."""
        with safe_open(self.folder / TENSORS_FILE, "pt") as file:
            keys = [key for key in file.keys() if key.startswith(f"{name}/")]  # noqa: SIM118, no mapping
            tensors = {key.removeprefix(f"{name}/"): file.get_tensor(key) for key in keys}
        return State(self._values.get(name, {}), tensors)


@dataclass(frozen=True)
class Header:
    """What a checkpoint says of itself; see `Checkpoint` for the attributes."""

    step: int
    run: str
    base: str
    records: dict[str, Any]


def save_checkpoint(
    root: Path, header: Header, parts: Mapping[str, State], keep: int, best: int | None = None
) -> None:
    """Write `root/step-NNNNNN` and remove old checkpoints. Rank 0 only.

    Checkpoints of later steps go too: the stage skipped them when it resumed from an older one.

    Args:
        keep: how many of the newest stay.
        best: step of another checkpoint that stays.
    """
    final = checkpoint_folder(root, header.step)
    values = {name: state.values for name, state in parts.items()}
    tensors = {f"{name}/{key}": t for name, state in parts.items() for key, t in state.tensors.items()}
    with SealedFolder(final) as folder:
        (folder / TENSORS_FILE).write_bytes(save(tensors))
        content = {"format": FORMAT, **vars(header), "parts": values}
        (folder / STATE_FILE).write_text(json.dumps(content, indent=1))
    earlier = sorted(folder for folder in root.glob("step-*") if folder <= final)
    for folder in set(root.glob("step-*")) - {*earlier[-keep:], checkpoint_folder(root, best or header.step)}:
        remove_folder(folder)


def checkpoint_folder(root: Path, step: int) -> Path:
    return root / f"step-{step:06d}"


def newest_checkpoint(root: Path, run: str) -> tuple[Checkpoint | None, list[str]]:
    """The newest good checkpoint of `run` under `root`, and one line on each newer one that is not good."""
    faults: list[str] = []
    for folder in sorted(root.glob("step-*"), reverse=True):
        checkpoint = read_checkpoint(folder, run)
        if isinstance(checkpoint, Checkpoint):
            return checkpoint, faults
        faults.append(f"skipped the checkpoint {folder}: {checkpoint}")
    return None, faults


def read_checkpoint(folder: Path, run: str) -> Checkpoint | str:
    """The checkpoint of `run` in `folder`, or what is wrong with it."""
    fault = seal_fault(folder) or _content_fault(folder, run)
    if fault:
        return fault
    state = json.loads((folder / STATE_FILE).read_text())
    header = {name: state[name] for name in ("step", "run", "base", "records")}
    return Checkpoint(folder, **header, _values=state["parts"])


def _content_fault(folder: Path, run: str) -> str | None:
    """What is wrong with the files of a checkpoint whose seal is whole, but which `run` did not write."""
    try:
        state = json.loads((folder / STATE_FILE).read_text())
        with safe_open(folder / TENSORS_FILE, "pt"):
            pass
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        return f"its content is damaged ({error!s:.200})"
    if isinstance(state, dict) and state.get("format", 1) != FORMAT:
        return OTHER_VERSION
    if not isinstance(state, dict) or not all(isinstance(state.get(key), kind) for key, kind in KEYS.items()):
        return f"{STATE_FILE} is damaged (it must hold {', '.join(KEYS)})"
    if not all(isinstance(values, dict) for values in state["parts"].values()):
        return f"{STATE_FILE} is damaged (each of its parts must be an object)"
    if state["run"] != run:
        manifest = folder.parents[1] / "manifest.json"
        return f"it is of another run ({state['run']:.40}) than {manifest} ({run:.40})"
    return None
