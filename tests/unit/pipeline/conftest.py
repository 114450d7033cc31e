"""Fixtures of several tests of the report."""

import pytest

from tests.support.finished_run import Run


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "run")
