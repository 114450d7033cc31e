"""Freed memory goes back to the kernel while a base is loaded, and is used again afterwards."""

import platform
import subprocess
import sys

import pytest

from stages.models.freed_memory import keep_freed_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")

SETTING = """
import resource, sys, torch
from stages.models.freed_memory import keep_freed_memory, return_freed_blocks
if sys.argv[1] != "left_alone":
    assert globals()[sys.argv[1]]()
"""
FAULTS = """
def work():
    tensors = [torch.ones(2**20) for _ in range(64)]
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
GAPS = """
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() // 2**20
before = resident()
kept, dropped = [], []
for _ in range(32):
    dropped.append(torch.ones(2**20))
    kept.append(torch.ones(2**18))
dropped.clear()
print(resident() - before)
"""


def printed(work: str, setting: str) -> int:
    """The number that `work` prints in a process of its own."""
    command = [sys.executable, "-c", SETTING + work, setting]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_tensors_take_the_pages_of_those_before():
    pages = 64 * 2**20 * 4 // 4096
    assert printed(FAULTS, "left_alone") > pages / 2
    assert printed(FAULTS, "keep_freed_memory") < pages / 4


def test_no_gaps_are_left_between_the_tensors_that_stay():
    stays = 32  # MiB; what is dropped has 128
    assert printed(GAPS, "keep_freed_memory") > 4 * stays
    assert printed(GAPS, "return_freed_blocks") < 2 * stays


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
