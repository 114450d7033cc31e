"""Whether a folder holds an adapter for the base that is loaded, without reading any pickle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open

from configs.errors import UserError
from stages.base_checks import safetensors_fault

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
