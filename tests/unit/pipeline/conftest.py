"""What several tests of the report share."""

import pytest

from tests.support.finished_run import Run


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "run")
