"""What a rank has on this machine, as far as it can be told without torch."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path

import psutil

from pipeline.planning.stage_memory import Rank

MIB = 2**20
CPU_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # the names of Linux on x86 and on Arm
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def rank_here(world: int, accelerators: int) -> Rank:
    """One of `world` ranks, on a machine with so many accelerators; without any, ranks share the RAM."""
    if accelerators:
        return Rank(gpu=True, bf16=True, ranks=world, available=_free_gpu_memory())
    return Rank(gpu=False, bf16=_multiplies_bf16(), ranks=world, available=_free_ram() // world)


def _free_gpu_memory() -> int | None:
    """Bytes that are free on the fullest GPU; None if nvidia-smi does not say."""
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        return min(int(line) for line in output.split()) * MIB
    return None


def _free_ram() -> int:
    """Bytes that a new process can have, within the limit of this container."""
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # no container, or `max`
        free = min(free, int(CGROUP_LIMIT.read_text()))
    return free


def _multiplies_bf16() -> bool:
    with suppress(OSError):
        return bool(CPU_BF16 & set(Path("/proc/cpuinfo").read_text().split()))
    return False
