"""Adapter folders: how they are written, and checks that one fits the base. No pickle is ever read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from peft import PeftConfig
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from configs.errors import UserError
from data.storage.adapter_names import ADAPTER_FILE, CONFIG_FILE, HEAD_FILE
from data.storage.sealed_folder import SealedFolder
from stages.models.adapter_checks import config_fault, tensor_fault
from stages.models.base_checks import safetensors_fault

MAGNITUDE = "lora_magnitude_vector"
Pooling = Literal["last", "mean"]
Files = dict[str, dict[str, Tensor]]  # tensors of each safetensors file, by their names in it
POOLING = "pooling"  # in the metadata of the head's file, if it is not `last`
# What PEFT raises about a value of another type, a number that is too large, or a pattern that is none.
UNUSABLE = (
    *(KeyError, OSError, RuntimeError, TypeError, ValueError),
    *(AttributeError, OverflowError, re.error),
)


class Ending(NamedTuple):
    """Which tokens a scalar head reads in place of the one that ends a turn.

    A classifier by another program reads its score a token later or earlier. The metadata of the head's file
    hold both attributes, ids with blanks between them.

    Attributes:
        end: id of the token that ends a turn.
        read: ids of the tokens in its place; they may be none.
    """

    end: int
    read: tuple[int, ...]


def check_files(folder: Path) -> None:
    """Raise UserError unless the folder has an adapter's files, and its safetensors are whole."""
    for name in (CONFIG_FILE, ADAPTER_FILE):
        if not (folder / name).is_file():  # PEFT would try a pickle next, and then the hub
            raise unusable(folder, f"it has no {name}")
    for path in sorted(folder.glob("*.safetensors")):
        if fault := safetensors_fault(path):
            raise unusable(folder, fault)


@contextmanager
def loading_adapter(folder: Path, modules: Sequence[str]) -> Iterator[None]:
    """Check the folder's files, and turn PEFT's errors about them into a UserError.

    Args:
        modules: names of the base's modules, from which the adapter's config chooses.
    """
    check_files(folder)
    if fault := config_fault(folder, modules):
        raise unusable(folder, fault)
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except UNUSABLE as error:
        raise unusable(folder, f"{' '.join(str(error).split()):.300}") from error


def check_adapter(folder: Path, role: str, names: Iterable[str]) -> None:
    """Raise UserError unless each file there holds finite tensors for exactly the parameters of `role`.

    Args:
        names: of the role's parameters in `Roles`.
    """
    for file, expected in _file_names(role, names).items():
        fault = tensor_fault(folder, file, expected) if (folder / file).exists() else None
        if fault:
            raise unusable(folder, fault)


def _file_names(role: str, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """The files of a role: the names of their tensors, each with its name in `Roles`."""
    files: dict[str, dict[str, str]] = {}
    for name in names:
        if name.startswith("causal."):
            saved = name.replace("causal.", "base_model.model.", 1).replace(f".{role}", "")
            if MAGNITUDE in saved:  # DoRA's, which PEFT saves as a vector and not as a module
                saved = saved.removesuffix(".weight")
            files.setdefault(ADAPTER_FILE, {})[saved] = name
        else:
            files.setdefault(HEAD_FILE, {})[name.rsplit(".", 1)[1]] = name
    return files


def read_ending(folder: Path, vocabulary: int) -> Ending | None:
    """The `Ending` in the metadata of the folder's head; None if the head reads an answer as it is.

    Raises:
        UserError: it is no ids of tokens below `vocabulary`.
    """
    with safe_open(folder / HEAD_FILE, "pt") as tensors:
        metadata = tensors.metadata() or {}
    if metadata.keys().isdisjoint(Ending._fields):
        return None
    words = {name: metadata.get(name, "none").split() for name in Ending._fields}
    for name, ids in words.items():
        if not all(word.isascii() and word.isdecimal() and int(word) < vocabulary for word in ids):
            raise unusable(
                folder, f"{HEAD_FILE}: {name} is {metadata.get(name)!r:.60}, and must be token ids"
            )
    if len(words["end"]) != 1:
        raise unusable(folder, f"{HEAD_FILE}: end is {metadata['end']!r:.60}, and must be one token id")
    return Ending(int(words["end"][0]), tuple(map(int, words["read"])))


def read_pooling(folder: Path) -> Pooling:
    """How the folder's head makes one score of an answer's tokens.

    Raises:
        UserError: the metadata of the head's file name no way that is known.
    """
    with safe_open(folder / HEAD_FILE, "pt") as tensors:
        pooling = (tensors.metadata() or {}).get(POOLING, "last")
    if pooling not in ("last", "mean"):
        raise unusable(folder, f"{HEAD_FILE}: {POOLING} is {pooling!r:.60}, and must be last or mean")
    return "mean" if pooling == "mean" else "last"


def unusable(folder: Path, reason: str) -> UserError:
    """The error about an adapter folder that no role can be made of."""
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
        ending, pooling: of its head.
    """

    role: str
    config: PeftConfig
    base_model: str
    tokenizer: PreTrainedTokenizerBase
    card: str
    ending: Ending | None = None
    pooling: Pooling = "last"


def save_adapter(final: Path, tensors: Mapping[str, Tensor], info: AdapterInfo) -> None:
    """Write a role as a plain PEFT folder. A role with a scalar head also gets `head.safetensors`.

    Args:
        final: the folder, which is whole or absent at any moment.
        tensors: the role's parameters by their names in `Roles`.
    """
    write_adapter(final, files_of(info.role, tensors), info)


def files_of(role: str, tensors: Mapping[str, Tensor]) -> Files:
    """The tensors of each file of a role, by their names there; `tensors` have those in `Roles`."""
    files = _file_names(role, tensors)
    return {file: {saved: tensors[name] for saved, name in names.items()} for file, names in files.items()}


def write_adapter(
    final: Path,
    files: Files,
    info: AdapterInfo,
    inside: Mapping[str, tuple[Files, AdapterInfo]] = MappingProxyType({}),
) -> None:
    """Write a plain PEFT folder.

    Args:
        final: the folder, which is whole or absent at any moment.
        inside: files and info of further roles, by the name of the folder in `final` that they go to.
    """
    with SealedFolder(final) as folder:
        _write_role(folder, files, info)
        for name, (of_role, info_of_role) in inside.items():
            (folder / name).mkdir()
            _write_role(folder / name, of_role, info_of_role)
        info.tokenizer.save_pretrained(str(folder))
        (folder / "README.md").write_text(info.card)


def _write_role(folder: Path, files: Files, info: AdapterInfo) -> None:
    """Write the tensors of a role and PEFT's config."""
    config = info.config
    # save_file would write files that only their owner can read.
    for file, tensors in files.items():
        metadata = {"format": "pt"} if file == ADAPTER_FILE else _head_metadata(info)
        (folder / file).write_bytes(_in_order(save(tensors, metadata)))
    config.base_model_name_or_path = info.base_model
    config.inference_mode = True
    for key, value in vars(config).items():
        if isinstance(value, set):  # with another order in every process; equal adapters are equal bytes
            setattr(config, key, sorted(value))
    config.save_pretrained(str(folder))


def _in_order(file: bytes) -> bytes:
    """A safetensors file with sorted metadata, which safetensors writes in another order in every process."""
    size = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + size])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    written = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
    return file[:8] + written + file[8 + size :]


def _head_metadata(info: AdapterInfo) -> dict[str, str] | None:
    ending = info.ending
    metadata = {"end": str(ending.end), "read": " ".join(map(str, ending.read))} if ending else {}
    return (metadata | ({} if info.pooling == "last" else {POOLING: info.pooling})) or None
