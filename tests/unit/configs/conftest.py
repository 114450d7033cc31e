"""Experiments in a temporary folder."""

import textwrap
from pathlib import Path

import pytest

from tests.unit.configs.minimal import MINIMAL


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes, name: str = "trial.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else textwrap.dedent(text).encode())
        return path

    return write


@pytest.fixture
def minimal(write) -> Path:
    return write(MINIMAL)
