"""The files that the path of a source names, and a digest of them."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from data.storage.files import sha256

MOST_FILES = 10_000  # more can only be a wrong folder, such as /


def is_pattern(path: str) -> bool:
    """Whether `path` is a pattern such as data/*.jsonl. What exists under that very name is none."""
    return glob.has_magic(path) and not os.path.lexists(path)


def matches(pattern: str) -> list[Path]:
    """What a pattern names, in order: files and folders, but hidden ones. It ends after `MOST_FILES` + 1."""
    return sorted(map(Path, islice(glob.iglob(pattern, recursive=True), MOST_FILES + 1)))


def source_digest(path: Path) -> str | None:
    """SHA-256 of a file, or of the names and contents of all files in a folder or of a pattern.

    None if there is no such file.
    """
    if os.path.isfile(path):  # not Path's, which raises OSError for a name too long
        return sha256(path)
    if os.path.isdir(path):
        files = path.rglob("*")
        return _of_all((file.relative_to(path).as_posix(), file) for file in sorted(files))
    if is_pattern(str(path)) and (found := matches(str(path))):
        return _of_all((file.as_posix(), file) for file in found)
    return None


def _of_all(files: Iterable[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, file in files:
        if file.is_file():
            digest.update(f"{name}\0{sha256(file)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
