"""The memory that a rank has: that of the GPUs which it may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.planning.machine_memory import rank_here

MIB = 2**20
# As nvidia-smi does, it knows a GPU by its number and its UUID, and fails for another one.
NVIDIA_SMI = """#!/bin/sh
case "$1" in
  --id=0|--id=GPU-aa) echo 100 ;;
  --id=1) echo 900 ;;
  --id=1,2) printf '900\\n400\\n' ;;
  --id=*) echo "No devices were found"; exit 6 ;;
  *) printf '100\\n900\\n400\\n' ;;
esac
"""


@pytest.mark.parametrize(
    ("visible", "free"),
    [(None, 100), ("0", 100), ("1", 900), ("1, 2", 400), ("GPU-aa", 100), ("MIG-cc", None), ("7", None)],
)
def test_only_visible_gpus_count(
    visible: str | None, free: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_text(NVIDIA_SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert rank_here(1, 1).available == (None if free is None else free * MIB)


def test_a_machine_without_nvidia_smi_does_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert rank_here(1, 1).available is None
