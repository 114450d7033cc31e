"""Files under one seal: `NAME.sha256` beside them has the SHA-256 of each, in the format of `sha256sum`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from configs.errors import UserError
from data.storage.files import sha256, write_text


def write_sealed(file: Path, texts: Mapping[str, str]) -> None:
    """Write the seal of `file`, and then the texts of it and of files beside it, by name."""
    lines = [f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n" for name, text in texts.items()]
    write_text(_seal(file), "".join(lines))
    for name, text in texts.items():
        write_text(file.with_name(name), text)


def check_sealed(file: Path, remedy: str) -> None:
    """Raise UserError unless `file`, and all that its seal names, is what `write_sealed` wrote.

    Args:
        remedy: the last sentence of the error.
    """
    seal = _seal(file)
    if not seal.is_file():
        raise UserError(f"{seal} is missing, so {file.name} cannot be checked. {remedy}")
    text = seal.read_text(errors="replace")
    names = [line.partition("  ")[2] for line in text.splitlines()]
    here = {path.name: path for path in file.parent.iterdir() if path.is_file()}
    whole = file.name in names and here.keys() >= set(names)
    if not whole or text != "".join(f"{sha256(here[name])}  {name}\n" for name in names):
        listed = " or ".join(dict.fromkeys([file.name, *names]))
        raise UserError(
            f"{file.parent}: {listed:.200}: damaged (SHA-256 is not the one in {seal.name}). {remedy}"
        )


def remove_sealed(file: Path) -> None:
    """Remove `file` and its seal, if they are there."""
    for path in (file, _seal(file)):
        path.unlink(missing_ok=True)


def _seal(file: Path) -> Path:
    return file.with_suffix(".sha256")
