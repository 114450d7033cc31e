"""What a rank has on this machine, as far as it can be told without torch."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

from pipeline.planning.stage_memory import Rank
from stages.distributed.free_memory import free_ram

MIB = 2**20
CPU_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # the names of Linux on x86 and on Arm


def rank_here(world: int, accelerators: int) -> Rank:
    """One of `world` ranks, on a machine with so many accelerators; without any, ranks share the RAM."""
    if accelerators:
        return Rank(gpu=True, bf16=True, ranks=world, available=_free_gpu_memory())
    return Rank(gpu=False, bf16=_multiplies_bf16(), ranks=world, available=free_ram() // world)


def _free_gpu_memory() -> int | None:
    """Bytes that are free on the fullest visible GPU; None if nvidia-smi does not say."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(" ", "")
    chosen = [f"--id={visible}"] if visible else []
    command = ["nvidia-smi", *chosen, "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        return min(int(line) for line in output.split()) * MIB
    return None


def _multiplies_bf16() -> bool:
    with suppress(OSError):
        return bool(CPU_BF16 & set(Path("/proc/cpuinfo").read_text().split()))
    return False
