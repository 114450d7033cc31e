"""`tristage run` ends with a report of what has finished, wherever it ends."""

from __future__ import annotations

import pytest

from launch import commands
from pipeline.planning.faults import Faults
from tests.support.finished_run import Run
from tests.support.pipeline_runs import request


@pytest.fixture
def page(tmp_path):
    return tmp_path / "run/report/report.md"


@pytest.fixture
def start(tmp_path, monkeypatch):
    """A function that runs `tristage run --until rm`; `ending` is what happens when the stages run."""
    run = Run(tmp_path / "run")

    def started(ending, until="rm"):
        monkeypatch.setattr(commands, "run_all", lambda *_: ending(run))
        made = request(run.path, run.experiment, caller="tristage")
        monkeypatch.setattr(commands, "read_request", lambda *_: (made, Faults()))
        monkeypatch.setattr(commands, "check_runnable", lambda *_: None)
        return commands.run(commands.RunOptions(until=until))

    return started


def finish(*stages, status=0):
    def ending(run):
        for stage in stages:
            run.stage(stage)
        return status

    return ending


@pytest.mark.parametrize(("until", "stages"), [("sft", ["sft"]), ("rm", ["sft", "rm"])])
def test_a_run_until_a_stage_writes_the_page_and_says_what_is_next(start, page, capsys, until, stages):
    assert start(finish(*stages), until) == 0
    text = page.read_text()
    assert "SFT, held-out loss" in text and ("Reward model, held-out accuracy" in text) == (until == "rm")
    assert "Stage ppo has not run." in text
    report, following = capsys.readouterr().out.splitlines()[-2:]
    assert report.startswith("report: ") and following.startswith("next: tristage run --from ")


def test_a_failure_keeps_its_status_and_has_a_page(start, page, capsys):
    assert start(finish("sft", status=1)) == 1
    assert page.is_file()
    output = capsys.readouterr()
    assert "report: " in output.out and "next: " not in output.out


def test_a_report_that_cannot_be_written_does_not_hide_the_failure(start, page, capsys):
    page.parent.write_text("in its place")
    assert start(finish("sft", status=1)) == 1
    assert "no report: " in capsys.readouterr().err


@pytest.mark.parametrize(("stages", "status"), [([], 1), (["sft"], 130), (["sft"], 143)])
def test_nothing_finished_and_an_interruption_have_no_page(start, page, stages, status):
    assert start(finish(*stages, status=status)) == status
    assert not page.exists()
