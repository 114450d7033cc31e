"""Whether a folder holds an adapter for the base that is loaded, without reading any pickle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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

ADAPTER_FILE = "adapter_model.safetensors"


@contextmanager
def loading_adapter(folder: Path) -> Iterator[None]:
    """Check the folder's files, and turn what PEFT raises about them into an error for the user."""
    for name in ("adapter_config.json", ADAPTER_FILE):
        if not (folder / name).is_file():  # PEFT would look for a pickle next, and then on the hub
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
    """Raise UserError unless the adapter brought exactly the `parameters` that its role has on this base."""
    with safe_open(folder / ADAPTER_FILE, "pt") as file:
        found = len(file.keys())
    if found != parameters:
        raise _unusable(folder, f"it holds {found} weights, but on this base it would have {parameters}")


def _unusable(folder: Path, reason: str) -> UserError:
    return UserError(
        f"{folder}: no adapter for this base: {reason.removesuffix('.')}. Restore the folder, or train its "
        "stage again."
    )


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


HEAD_FILE = "head.safetensors"
