"""A digest that shows whether the folder of a local base still holds the same model."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

PIECE_BYTES = 2**20
PIECES = 16


def folder_digest(folder: Path) -> str | None:
    """SHA-256 of a local base's configuration, tokenizer and weights. None if the base is not a local folder.

    A large file enters with its length and 16 pieces of 1 MiB, including the first and the last. Different
    weights differ everywhere, and a plan should not read a base of many gigabytes.
    """
    if not folder.is_absolute() or not os.path.isdir(folder):  # Path.is_dir fails at a name that is too long
        return None
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        _add_pieces(digest, path)
    return digest.hexdigest()


def _add_pieces(digest: hashlib._Hash, path: Path) -> None:
    last = max(0, path.stat().st_size - PIECE_BYTES)
    starts = (
        range(0, last + 1, PIECE_BYTES)
        if last <= PIECE_BYTES * PIECES
        else [last * n // (PIECES - 1) for n in range(PIECES)]
    )
    with path.open("rb") as stream:
        for start in (*starts, last):
            stream.seek(start)
            digest.update(stream.read(PIECE_BYTES))
