"""`make test-vllm` says why it cannot run on a machine, before it installs anything."""

from __future__ import annotations

import pytest

from tests.vllm.processor import obstacle

CPUINFO = "processor\t: 0\nmodel name\t: avx2 in a name\nflags\t\t: fpu sse4_2 avx {}\nbugs\t\t:\n"


@pytest.mark.parametrize("flags", ["avx2", "avx2 avx512f avx512_bf16"])
def test_processor_that_runs_vllm(flags: str) -> None:
    assert obstacle("Linux", "x86_64", CPUINFO.format(flags)) == ""


@pytest.mark.parametrize(
    ("system", "architecture", "cpuinfo", "reason"),
    [
        ("Linux", "x86_64", CPUINFO.format(""), "needs AVX2"),
        ("Linux", "x86_64", "", "needs AVX2"),
        ("Linux", "aarch64", CPUINFO.format("avx2"), "this machine is aarch64 Linux"),
        ("Darwin", "arm64", "", "this machine is arm64 Darwin"),
    ],
)
def test_processor_that_does_not(system: str, architecture: str, cpuinfo: str, reason: str) -> None:
    assert reason in obstacle(system, architecture, cpuinfo)
