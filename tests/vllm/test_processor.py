"""`make test-vllm` says why it cannot run on a machine before it installs, and installs all it needs."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.vllm.processor import obstacle

ROOT = Path(__file__).resolve().parents[2]

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


def test_its_environment_has_what_the_project_needs() -> None:
    lines = (ROOT / "tests/vllm/requirements.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    installed = {canonicalize_name(pin.name) for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {canonicalize_name(Requirement(line).name) for line in project["dependencies"]} <= installed
