"""Files of lines that only grow. A line is on the disk as a whole, or it is not there."""

from __future__ import annotations

import os
from pathlib import Path

from configs.regular_file import read_regular_file
from data.storage.files import sync


def append_line(file: Path, line: bytes) -> None:
    """Append a line and its line break. When this returns, they are on the disk.

    Raises:
        OSError: the disk is full, for example. No part of the line stays.
    """
    is_new, rest = not file.exists(), line + b"\n"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
    if is_new:
        sync(file.parent)


def drop_cut_line(file: Path) -> None:
    """Remove a last line that a kill has cut short: nobody was told that it is there."""
    content = read_regular_file(file) if file.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(file, whole)
