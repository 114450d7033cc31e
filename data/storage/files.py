"""Files that are whole or absent, and their hashes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from configs.errors import UserError
from configs.regular_file import read_regular_file

PARTIAL = ".partial"  # ending of hidden files and folders while they are written or removed


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: to a temporary file beside it, synced, then renamed to `path`."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder. It is renamed first, so that no reader sees it half removed."""
    going = folder.with_name(f".{folder.name}.old{PARTIAL}")
    shutil.rmtree(going, ignore_errors=True)  # of one that was killed here
    shutil.rmtree(folder.rename(going))


def remove_partial_files(folder: Path, name: str = "**/.*") -> None:
    """Remove partial files that killed writers left in `folder`. No other process may be writing there.

    Args:
        name: glob pattern of the files and folders, without their ending.
    """
    for partial in list(folder.glob(f"{name}{PARTIAL}")):
        if partial.is_dir() and not partial.is_symlink():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)  # it may have been in a folder that is gone


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    write_text(path, json_lines(rows))


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """One JSON object per line, as text."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_json_lines(
    path: Path, required: Sequence[str] = (), *, growing: bool = False, remedy: str = "Remove the line."
) -> list[dict[str, Any]]:
    """Read the objects of a file of JSON lines.

    Args:
        required: keys that every object must have.
        growing: skip a last line without a line break, which a killed or active writer leaves.
        remedy: the last sentence of the error.

    Raises:
        UserError: a line is not a JSON object, or lacks a key.
    """
    # splitlines would also split at U+2028 and other characters that a JSON string may hold.
    try:
        *lines, rest = read_regular_file(path).decode(errors="replace").split("\n")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror}. Restore the file, or move it away."
        ) from error
    if rest and not growing:
        lines.append(rest)
    rows = []
    for number, line in enumerate(lines, 1):
        row, fault = _object(line, required)
        if fault:
            raise UserError(f"{path}, line {number}: damaged ({fault}). {remedy}")
        rows.append(row)
    return rows


def _object(line: str, required: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The object of a line, and the fault of the line or ""."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return {}, f"not JSON: {error.msg}"
    except (RecursionError, ValueError):
        return {}, "nested too deeply, or a number with too many digits"
    if not isinstance(row, dict):
        return {}, "not a JSON object"
    missing = [key for key in required if key not in row]
    return row, f"without {', '.join(missing)}" if missing else ""


def stays_inside(name: str) -> bool:
    """Whether a file name stays inside the folder that it is relative to: not absolute, no `..`, no NUL."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name
