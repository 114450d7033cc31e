"""Files that are whole or not there at all, and their hashes."""

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

PARTIAL = ".partial"  # how the names of hidden files and folders end that are being written, or removed


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have the system write a file, or a folder's list of names, to its disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: to a temporary neighbour, synced, then renamed over `path`."""
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
    """Remove a folder that is never seen half-removed under its name."""
    shutil.rmtree(folder.rename(folder.with_name(f".{folder.name}.old{PARTIAL}")))


def sweep(folder: Path, name: str = "**/.*") -> None:
    """Remove what killed writers left in `folder`, where nobody else may be writing.

    Args:
        name: pattern of what to look for, up to its ending.
    """
    for left in list(folder.glob(f"{name}{PARTIAL}")):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink(missing_ok=True)  # it may have gone with its folder


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, all of them or none."""
    write_text(path, json_lines(rows))


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_json_lines(
    path: Path, required: Sequence[str] = (), *, growing: bool = False, remedy: str = "Remove the line."
) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, each with the keys in `required`.

    Args:
        growing: a last line without its line break is passed over: a kill, or a writer that is still at
            it, left it so.

    Raises:
        UserError: a line is no such object; `remedy` is what to do then.
    """
    # Not splitlines: a JSON string may hold U+2028 and other characters at which that breaks lines.
    *lines, rest = path.read_text(encoding="utf-8", errors="replace").split("\n")
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
    """The object of a line, or what is wrong with it."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return {}, f"not JSON: {error.msg}"
    except (RecursionError, ValueError):
        return {}, "more than anybody wrote there"
    if not isinstance(row, dict):
        return {}, "no JSON object"
    missing = [key for key in required if key not in row]
    return row, f"no {', '.join(missing)} there" if missing else ""


def stays_inside(name: str) -> bool:
    """Whether a relative file name stays in the folder it is relative to: not absolute, no `..`, no NUL."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name
