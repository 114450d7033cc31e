"""A stage that says it is running, and whose lock nobody holds, was killed."""

from pathlib import Path

import pytest

from configs.errors import UserError
from pipeline.planning.next_round import make_round
from pipeline.state.run_directory import RunDirectory
from pipeline.state.stage_state import nobody, state_of
from tests.support.finished_run import Run
from tests.support.pipeline_runs import write_stage


def test_states(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    manifest = write_stage(tmp_path, "sft", "running")
    assert state_of(manifest, run.is_locked) == "killed"
    with run.lock("sft"):
        assert state_of(manifest, run.is_locked) == "running"
        assert state_of(manifest, nobody) == "killed"
    for status in ("finished", "failed", "interrupted"):
        other = manifest.model_copy(update={"status": status})
        assert state_of(other, lambda _: pytest.fail("its lock says nothing")) == status


def test_a_round_is_told_that_a_stage_was_killed(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.stage("sft", status="running", output=None, metrics={})
    with pytest.raises(UserError, match="stage sft was killed, and a round starts from finished ones"):
        make_round(RunDirectory(run.path), "sft", [], None)
