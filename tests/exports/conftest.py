"""Environments with programs that do not install beside this project."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.runs import ROOT

Run = Callable[..., str]


def environment(name: str) -> Path:
    """The `bin` of an environment in the clone. Its tests are skipped without it."""
    folder = ROOT / name / "bin"
    if not (folder / "python").exists():
        pytest.skip(f"{name} is not there: make test-exports builds it")
    return folder


def run_in(folder: Path, code: str, *words: str | Path) -> str:
    """What a program of another environment prints."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(folder / "python"), "-c", code, *map(str, words)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def gguf_bin() -> Path:
    return environment(".venv-gguf")


@pytest.fixture(scope="session")
def rewardbench_bin() -> Path:
    return environment(".venv-rewardbench")
