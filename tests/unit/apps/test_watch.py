"""`tristage watch`: what is shown of a run follows from its files."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from apps.watch import PATIENCE, current_stage, progress_of, sparkline, state_of, total_steps, view, watch
from configs.errors import UserError
from pipeline.state.results import read_results
from pipeline.state.run_directory import RunDirectory
from tests.support.finished_run import Run


def shown(path) -> str:
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(view(read_results(path)))
    return console.export_text()


def test_a_curve_in_letters() -> None:
    assert sparkline([0.0, 1.0, 2.0, 7.0]) == "▁▂▃█"
    assert sparkline([5.0, 5.0]) == "▁▁"
    assert sparkline([]) == sparkline([float("nan")]) == ""
    assert sparkline([0.0, 0.0, 8.0, 8.0], width=2) == "▁█"
    assert len(sparkline(range(1000))) <= 48


def test_a_run_in_progress(tmp_path) -> None:
    run = Run(tmp_path / "run").stage("sft").stage("rm").stage("ppo", status="running")
    results = read_results(run.path)
    assert current_stage(results) == "ppo"
    assert state_of(results, "ppo") == "killed"  # no process holds its lock
    with RunDirectory(run.path).lock("ppo"):
        assert state_of(results, "ppo") == "running"
        assert total_steps(results, results.manifests["ppo"]) == run.experiment.ppo.iterations
        assert f"of {run.experiment.ppo.iterations}" in progress_of(results, "ppo")
        text = shown(run.path)
    for expected in ("sft", "finished", "running", "KL", "entropy", "→"):
        assert expected in text


def test_a_finished_run_is_shown_once_and_left(tmp_path, capsys) -> None:
    run = Run(tmp_path / "run").stage("sft").stage("rm").stage("ppo")
    watch(Console(width=110), RunDirectory(run.path), once=False)  # no terminal: once
    assert capsys.readouterr().out.count("ppo") >= 1


@pytest.mark.parametrize("status", ["finished", "interrupted"])
def test_it_leaves_a_run_of_which_no_stage_runs_any_more(tmp_path, monkeypatch, status) -> None:
    run, looks = Run(tmp_path / "run").stage("sft").stage("rm", status=status), list[float]()
    monkeypatch.setattr("apps.watch.time.sleep", looks.append)
    watch(Console(force_terminal=True, file=io.StringIO()), RunDirectory(run.path), once=False)
    assert sum(looks) == PATIENCE


def test_a_run_that_is_made_again_is_watched_although_it_once_finished(tmp_path, monkeypatch) -> None:
    run = Run(tmp_path / "run").stage("sft", status="running").stage("rm").stage("ppo")
    looks = list[float]()

    def wait(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            run.stage("sft")

    monkeypatch.setattr("apps.watch.time.sleep", wait)
    with RunDirectory(run.path).lock("sft"):
        assert current_stage(read_results(run.path)) == "sft"
        watch(Console(force_terminal=True, file=io.StringIO()), RunDirectory(run.path), once=False)
    assert len(looks) == 3


def test_what_models_wrote_cannot_move_the_cursor(tmp_path) -> None:
    run = Run(tmp_path / "run").stage("sft").stage("rm").stage("ppo", status="running")
    (run.path / "ppo/samples.jsonl").write_text(
        '{"step": 1, "prompt": "p", "response": "\\u001b[2J[red]gone", "score": 1.5}\n'
    )
    text = shown(run.path)
    assert "\x1b" not in text
    assert "[red]gone" in text


def test_no_run_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        watch(Console(), RunDirectory(tmp_path), once=True)
