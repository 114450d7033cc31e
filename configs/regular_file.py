"""Read a file whole. A pipe or a device in its place may never answer or never end."""

from __future__ import annotations

import errno
from pathlib import Path


def read_regular_file(path: Path, most: int | None = None) -> bytes:
    """The content of a file.

    Args:
        most: bytes; None for any length.

    Raises:
        OSError: it cannot be read, or is a pipe, a socket or a device.
        ValueError: it is longer than `most`.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
    with path.open("rb") as stream:
        content = stream.read() if most is None else stream.read(most + 1)
    if most is not None and len(content) > most:
        raise ValueError(f"longer than {most:,} bytes; give the path of another file")
    return content
