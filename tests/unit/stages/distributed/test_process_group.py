"""The process reuses freed memory instead of returning it to the kernel."""

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


def page_faults(setting: str) -> int:
    """Page faults when 256 MiB of tensors are made and dropped a second time."""
    result = subprocess.run(
        [sys.executable, "-c", FAULTS, setting], capture_output=True, text=True, check=True
    )
    return int(result.stdout.splitlines()[-1])  # DeepSpeed writes a line when it is imported


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_tensors_take_the_pages_of_those_before():
    pages = 64 * 2**20 * 4 // 4096
    assert page_faults("left alone") > pages / 2
    assert page_faults("kept") < pages / 4


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
