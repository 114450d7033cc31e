"""Names that files in a run directory may give to other files."""

from __future__ import annotations

from pathlib import PurePosixPath


def stays_inside(name: str) -> bool:
    """Whether a relative file name stays in the folder it is relative to: not absolute, no `..`, no NUL."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name
