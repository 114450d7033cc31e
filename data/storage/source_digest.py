"""A digest of the file or folder that a stage reads its rows from."""

from __future__ import annotations

import hashlib
from pathlib import Path

from data.storage.files import sha256


def source_digest(path: Path) -> str | None:
    """SHA-256 of a file, or of the names and contents of all files in a folder. None if there is neither."""
    if path.is_file():
        return sha256(path)
    if not path.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            digest.update(
                f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode(errors="surrogateescape")
            )
    return digest.hexdigest()
