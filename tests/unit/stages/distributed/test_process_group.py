"""Memory that is freed is used again, rather than handed back to the kernel."""

import platform
import subprocess
import sys

import pytest

from stages.distributed.process_group import keep_freed_memory

FAULTS = """
import resource, sys, torch
from stages.distributed.process_group import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def work():
    tensors = [torch.ones(2**20) for _ in range(64)]
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Pages mapped by making and dropping 256 MiB of tensors a second time."""
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])  # DeepSpeed writes a line when it is imported


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_tensors_take_the_pages_of_those_before():
    pages = 64 * 2**20 * 4 // 4096
    assert faults("left alone") > pages / 2
    assert faults("kept") < pages / 4


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
