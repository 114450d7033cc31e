"""The RAM that is free is that of the container, under control groups of both versions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from stages.distributed import free_memory
from stages.distributed.free_memory import FIRST, SECOND, Names, free_ram

GIB = 2**30


def write_group(folder: Path, names: Names, limit: str) -> None:
    """A group that uses 3 GiB, 1 GiB of them file pages that nobody used lately."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names.limit).write_text(f"{limit}\n")
    (folder / names.usage).write_text(f"{3 * GIB}\n")
    own = "inactive_file 5\n" if names.reclaimable != "inactive_file" else ""  # without the groups below it
    (folder / "memory.stat").write_text(f"{own}{names.reclaimable} {GIB}\nactive_file 7\n")


@pytest.mark.parametrize(
    ("line", "folder", "version", "limit", "free"),
    [
        ("0::/", ".", SECOND, str(8 * GIB), 6 * GIB),
        ("0::/job/one", "job/one", SECOND, str(8 * GIB), 6 * GIB),
        ("0::/slurm/job_1/task_0", "slurm/job_1", SECOND, str(8 * GIB), 6 * GIB),
        ("0::/", ".", SECOND, "max", 16 * GIB),
        ("0::/", ".", SECOND, str(GIB), 0),
        ("4:memory:/docker/abc", ".", FIRST, str(8 * GIB), 6 * GIB),  # the path is the one outside
        ("4:cpu,memory:/job", "job", FIRST, str(8 * GIB), 6 * GIB),
        ("3:cpuset:/", ".", FIRST, str(8 * GIB), 16 * GIB),
    ],
)
def test_what_a_group_has_left(
    line: str,
    folder: str,
    version: Names,
    limit: str,
    free: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_group(tmp_path / folder, version, limit)
    (tmp_path / "of-process").write_text(f"9:name=systemd:/\n{line}\n")
    monkeypatch.setattr(free_memory, "OF_PROCESS", tmp_path / "of-process")
    monkeypatch.setattr(free_memory, "FIRST", FIRST._replace(root=tmp_path))
    monkeypatch.setattr(free_memory, "SECOND", SECOND._replace(root=tmp_path))
    monkeypatch.setattr(free_memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=16 * GIB))
    assert free_ram() == free


def test_without_control_groups_it_is_that_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_memory, "OF_PROCESS", Path("no such file"))
    monkeypatch.setattr(free_memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=5))
    assert free_ram() == 5
