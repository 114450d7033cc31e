"""A run whose first stage has finished, for what is damaged or swapped in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.load import load_experiment
from configs.schema import Experiment
from tests.contract.bad_inputs import entry
from tests.contract.bad_inputs.entry import experiment
from tests.support.pipeline_runs import write_stage


@pytest.fixture
def sft_run(tmp_path: Path) -> tuple[Path, Experiment, Path]:
    """An experiment and its run, in which sft has finished."""
    file = experiment(tmp_path)
    config = load_experiment(file)
    write_stage(tmp_path / "run", "sft", config=config)
    return file, config, tmp_path / "run"


@pytest.fixture(autouse=True)
def _tell_whether_it_was_refused(
    monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> Iterator[None]:
    """Record whether the input met an error for the user, in this process or another."""
    refusals: list[str] = []
    initialise = UserError.__init__

    def noted(error: UserError, message: str) -> None:
        refusals.append(message)
        initialise(error, message)

    monkeypatch.setattr(UserError, "__init__", noted)
    monkeypatch.setattr(entry, "refusals", refusals)
    yield
    record_property("refused", bool(refusals))
