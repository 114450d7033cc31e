"""A run whose first stage has finished, for what is damaged or swapped in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.load import load_experiment
from configs.schema import Experiment
from tests.contract.bad_inputs.entry import experiment
from tests.support.pipeline_runs import write_stage


@pytest.fixture
def sft_run(tmp_path: Path) -> tuple[Path, Experiment, Path]:
    """An experiment and its run, in which sft has finished."""
    file = experiment(tmp_path)
    config = load_experiment(file)
    write_stage(tmp_path / "run", "sft", config=config)
    return file, config, tmp_path / "run"
