"""Facts about large files, such as a hash, computed once for each version of a file and kept in a cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from data.storage.files import write_text

# A file that changed just now may change again within the resolution of its time stamps.
SETTLED_NS = 2 * 10**9


def cache_dir() -> Path:
    """`$TRISTAGE_CACHE`, else `$XDG_CACHE_HOME/tristage`, else `~/.cache/tristage`."""
    if folder := os.environ.get("TRISTAGE_CACHE"):
        return Path(folder).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tristage"


def cached(path: Path, fact: str, compute: Callable[[Path], str]) -> str:
    """`compute(path)`, from the cache if the file is the one that it was computed from.

    A version of a file is its path, device, inode, size, and times of modification and of change. Nobody can
    set the time of change, so a file with old time stamps and new content is another version. Processes may
    call this at once: an entry is written atomically, and all write the same.

    Args:
        fact: the name of what is computed. Another computation needs another name.
    """
    path, started = path.resolve(), time.time_ns()
    version = _version(path)
    key = hashlib.sha256(repr((fact, str(path), version)).encode("utf-8", "surrogateescape")).hexdigest()
    entry = cache_dir() / "files" / key
    with contextlib.suppress(OSError, UnicodeDecodeError):  # no entry yet
        return entry.read_text(encoding="utf-8")
    value = compute(path)
    if started - max(version[-2:]) > SETTLED_NS and _version(path) == version:
        with contextlib.suppress(OSError):  # a cache that cannot be written saves no time, and harms nothing
            entry.parent.mkdir(parents=True, exist_ok=True)
            write_text(entry, value)
    return value


def _version(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
