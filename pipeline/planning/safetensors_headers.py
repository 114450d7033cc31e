"""Shapes and sizes of tensors from the headers of their safetensors files. No tensor is read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

MAX_HEADER = 100 * 2**20  # of a safetensors file, its own limit


def stored_tensors(files: Iterable[Path]) -> Iterator[tuple[str, tuple[tuple[int, ...], int]]]:
    """Name, shape and bytes of each tensor, from the headers of safetensors files."""
    for file in files:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if length <= MAX_HEADER else {}
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                yield name, (tuple(entry["shape"]), end - begin)
