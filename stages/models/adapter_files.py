"""Adapter folders: how they are written, and checks that one fits the base. No pickle is ever read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from configs.errors import UserError
from data.storage.sealed_folder import SealedFolder
from stages.models.base_checks import safetensors_fault

ADAPTER_FILE, HEAD_FILE = "adapter_model.safetensors", "head.safetensors"


@contextmanager
def loading_adapter(folder: Path) -> Iterator[None]:
    """Check the folder's files, and turn PEFT's errors about them into a UserError."""
    for name in ("adapter_config.json", ADAPTER_FILE):
        if not (folder / name).is_file():  # PEFT would try a pickle next, and then the hub
            raise _unusable(folder, f"it has no {name}")
    for path in sorted(folder.glob("*.safetensors")):
        if fault := safetensors_fault(path):
            raise _unusable(folder, fault)
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise _unusable(folder, f"{' '.join(str(error).split()):.300}") from error


def check_adapter(folder: Path, parameters: int) -> None:
    """Raise UserError unless the adapter file has exactly as many weights as its role on this base."""
    with safe_open(folder / ADAPTER_FILE, "pt") as file:
        weights = len(file.keys())
    if weights != parameters:
        raise _unusable(folder, f"it holds {weights} weights, but on this base it would have {parameters}")


def _unusable(folder: Path, reason: str) -> UserError:
    return UserError(
        f"{folder}: no adapter for this base: {reason.removesuffix('.')}. Restore the folder, or train its "
        "stage again."
    )


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter folder holds beside the role's tensors.

    Attributes:
        role: its name in `Roles`.
        config: PEFT's description of the adapter.
        base_model: name of the base, for `adapter_config.json`.
        card: text of the model card.
    """

    role: str
    config: LoraConfig
    base_model: str
    tokenizer: PreTrainedTokenizerBase
    card: str


def save_adapter(final: Path, tensors: dict[str, Tensor], info: AdapterInfo) -> None:
    """Write a role as a plain PEFT folder. A role with a scalar head also gets `head.safetensors`.

    Args:
        final: the folder, which is whole or absent at any moment.
        tensors: the role's parameters by their names in `Roles`.
    """
    config = info.config
    adapter = {
        name.replace("causal.", "base_model.model.", 1).replace(f".{info.role}", ""): tensor
        for name, tensor in tensors.items()
        if name.startswith("causal.")
    }
    head = {name.rsplit(".", 1)[1]: tensor for name, tensor in tensors.items() if name.startswith("heads.")}
    with SealedFolder(final) as folder:
        # save_file would write files that only their owner can read.
        (folder / ADAPTER_FILE).write_bytes(save(adapter, {"format": "pt"}))
        config.base_model_name_or_path = info.base_model
        config.inference_mode = True
        if not isinstance(config.target_modules, str):
            # A set has another order in every process. Equal adapters must be equal bytes.
            config.target_modules = sorted(config.target_modules or [])
        config.save_pretrained(str(folder))
        if head:
            (folder / HEAD_FILE).write_bytes(save(head))
        info.tokenizer.save_pretrained(str(folder))
        (folder / "README.md").write_text(info.card)
