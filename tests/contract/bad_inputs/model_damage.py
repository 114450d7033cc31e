"""Copies of model folders with damage done to them, and the check that they are refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from configs.errors import UserError
from tests.contract.bad_inputs.entry import check_message, files

WEIGHTS = "model.safetensors"
Damage = Callable[[Path], Any]


class Plant:
    """Unpickled, it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


def plant(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes(pickle.dumps(Plant(folder.parent / "EXECUTED")))


def edit(name: str, **changes: Any) -> Damage:
    def change(folder: Path) -> None:
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def repeat_key(name: str, key: str, value: Any) -> Damage:
    """Write `key` a second time into the JSON object of a file."""

    def change(folder: Path) -> None:
        text = (folder / name).read_text().rstrip().removesuffix("}")
        (folder / name).write_text(f"{text}, {json.dumps(key)}: {json.dumps(value)}}}")

    return change


def write(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def remove(*names: str) -> Damage:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink(missing_ok=True)

    return change


def halve(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:5000])


def change_weight(name: str, change: Callable[[Tensor], Tensor], file: str = WEIGHTS) -> Damage:
    """Write the weights again, with `change` made to the weight `name`."""

    def damage(folder: Path) -> None:
        weights = load_file(folder / file)
        weights[name] = change(weights[name])
        save_file(weights, folder / file, {"format": "pt"})

    return damage


def rename_weights(old: str, new: str, file: str) -> Damage:
    def change(folder: Path) -> None:
        weights = {name.replace(old, new): weight for name, weight in load_file(folder / file).items()}
        save_file(weights, folder / file, {"format": "pt"})

    return change


def with_one(value: float) -> Callable[[Tensor], Tensor]:
    """Puts `value` in the middle of a weight."""

    def change(weight: Tensor) -> Tensor:
        weight.view(-1)[weight.numel() // 2] = value
        return weight

    return change


def damaged(source: Path, target: Path, damages: list[Damage]) -> dict[str, bytes]:
    shutil.copytree(source, target)
    for damage in damages:
        damage(target)
    return files(target) if target.exists() else {}


def check_refusal(action: Callable[[], Any], folder: Path, before: dict[str, bytes], *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        action()
    check_message(str(caught.value), str(folder), *parts)
    assert (files(folder) if folder.exists() else {}) == before
    assert not (folder.parent / "EXECUTED").exists()
