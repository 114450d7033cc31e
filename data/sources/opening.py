"""Open a data file as a stream of bytes: plain, gzip or Zstandard."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa

from configs.errors import UserError

FREE_BYTES = 64 * 2**20  # a compressed file may become this long, whatever its own size
MOST_EXPANSION = 200  # text becomes 3 to 20 times as long; a file of zeros 1,000 times and more


class DamagedFile(Exception):
    """The bytes of a compressed file end too early, are no such bytes, or expand without end."""


def existing(path: str | Path) -> Path:
    """The file at `path`.

    Raises:
        UserError: there is none, it is empty, no file, or not readable.
    """
    file = Path(path)
    if not os.path.isfile(file):
        if os.path.exists(file) and not os.path.isdir(file):
            raise UserError(f"{path}: a pipe or a device, not a file. Write its rows into a file.")
        raise UserError(f"{path}: there is no such file. Correct the path under `data` in the configuration.")
    if file.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty. Put rows into it, or point `data` at another file.")
    if not os.access(file, os.R_OK):
        raise UserError(f"{path}: permission to read the file is denied. Change its permissions, or copy it.")
    return file


def open_data(file: Path) -> io.BufferedReader:
    """The bytes of a file; decompressed if its name ends in .gz or .zst. Reading raises DamagedFile."""
    if file.suffix.lower() not in (".gz", ".zst"):
        return file.open("rb")
    return io.BufferedReader(_Decompressed(file))


class _Decompressed(io.RawIOBase):
    def __init__(self, file: Path) -> None:
        self._file = file.open("rb")
        self._stream = (
            gzip.GzipFile(fileobj=self._file)
            if file.suffix.lower() == ".gz"
            else pa.CompressedInputStream(self._file, "zstd")
        )
        self._left = max(FREE_BYTES, MOST_EXPANSION * file.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        try:
            content = self._stream.read(len(view))
        except (EOFError, OSError, ValueError, zlib.error) as error:
            raise DamagedFile(f"it cannot be decompressed ({error!s:.100}). Compress it again") from error
        self._left -= len(content)
        if self._left < 0:
            raise DamagedFile(
                f"it expands to over {MOST_EXPANSION} times its size, as text does not. If it is right, "
                "decompress it yourself"
            )
        view[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            self._file.close()
        super().close()
