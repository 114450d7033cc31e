"""Where embedded models are cached. It imports no torch: `tristage plan` looks there."""

from __future__ import annotations

from pathlib import Path

from data.storage.file_cache import cache_dir

CONVERTER_VERSION = 1  # part of the folder's name; raise it when a builder's output changes


def cached_folder(name: str) -> Path:
    """The folder of the embedded model `name`, which may not exist yet."""
    return cache_dir() / f"{name}-v{CONVERTER_VERSION}"
