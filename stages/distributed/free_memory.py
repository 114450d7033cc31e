"""The RAM that processes of this machine, or of this container, can still have. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

OF_PROCESS = Path("/proc/self/cgroup")


class Names(NamedTuple):
    """Where a version of Linux's control groups keeps its figures."""

    root: Path
    limit: str
    usage: str
    reclaimable: str  # of `memory.stat`: file pages that the kernel drops if it needs memory


FIRST = Names(
    Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
)
SECOND = Names(Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file")


def free_ram() -> int:
    """Bytes that are free on this machine, or below the limit of this process's container."""
    return max(0, min([psutil.virtual_memory().available, *_below_limits()]))


def _below_limits() -> Iterator[int]:
    """What the process's control group has left, and each above it.

    A container may see its own group as the root, or at the path that it has outside.
    """
    with suppress(OSError):
        for line in OF_PROCESS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            names = FIRST if controllers else SECOND
            own = Path(path.lstrip("/"))
            for folder in {names.root / part for part in (own, *own.parents)}:
                with suppress(OSError, ValueError):  # no such file, or the limit is `max`
                    yield _left(folder, names)


def _left(folder: Path, names: Names) -> int:
    limit = int((folder / names.limit).read_text())
    usage = int((folder / names.usage).read_text())
    for line in (folder / "memory.stat").read_text().splitlines():
        if line.startswith(f"{names.reclaimable} "):
            usage -= int(line.split()[1])
    return limit - usage
