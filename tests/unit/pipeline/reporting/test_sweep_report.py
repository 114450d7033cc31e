"""The report of a sweep, and best of n in the report of a run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from configs.errors import UserError
from configs.schema import Ppo
from pipeline.reporting.sweep_report import SweepResult, frontier, write_sweep_report
from pipeline.state.run_directory import RunDirectory
from pipeline.terminal.show import print_status
from tests.support.finished_run import Run as MadeUp
from tests.support.finished_run import interval, write_lines


def write_made_up_sweep(root: Path) -> None:
    """Write two settings of two seeds. One run has collapsed to one answer, and one did not finish."""
    for setting, seed, gold in (("0", 0, 0.5), ("0", 1, -0.4), ("0.05", 0, 0.6), ("0.05", 1, None)):
        path = root / "sweep" / f"kl_coef={setting}-seed={seed}"
        path.mkdir(parents=True)
        run = MadeUp(path)
        if gold is not None:
            run.metrics["ppo"] |= interval("gold_ppo", gold, 0.05)
            run.evaluation = [row | ({"ppo": "Good."} if gold < 0 else {}) for row in run.evaluation]
        run.complete()
        if gold is None:
            run.stage("ppo", status="failed", metrics={})
    (root / "best").mkdir()
    curve = [
        {"n": n, "kl": kl, **interval("rm_score", kl, 0.1), **interval("gold", kl / 2, 0.1)}
        for n, kl in ((1, 0.0), (4, 0.64), (16, 1.8))
    ]
    write_lines(root / "best" / "curve.jsonl", curve)


def test_report_tells_settings_apart_and_counts_collapses(tmp_path: Path) -> None:
    write_made_up_sweep(tmp_path)
    text = write_sweep_report(tmp_path).with_name("report.md").read_text()
    without, with_penalty = (
        next(row for row in text.splitlines() if row.startswith(f"| kl\\_coef={b} ")) for b in ("0", "0.05")
    )
    assert "| 2 |" in without and "1 of 2" in without and "-0.400 to 0.500" in without
    assert "1 of 2 finished" in with_penalty and "0 of 1" in with_penalty
    assert (tmp_path / "sweep" / "report" / "frontier.png").stat().st_size > 10_000
    rows = [
        json.loads(line) for line in (tmp_path / "sweep" / "report" / "runs.jsonl").read_text().splitlines()
    ]
    assert [row.get("gold_ppo") for row in rows] == [0.5, -0.4, 0.6, None]
    prompts = len(MadeUp(tmp_path).evaluation)
    assert [row.get("distinct") for row in rows] == [1, 1 / prompts, 1, None]


def test_each_of_36_settings_has_its_own_look() -> None:
    metrics = {"kl": 1.0, "gold_ppo": 0.5, "reward_ppo": 0.5}
    results = [SweepResult(f"kl_coef={number}", 0, metrics, "", Ppo()) for number in range(36)]
    points = frontier(results, []).axes[0].collections
    looks = {(str(one.get_facecolor()), str(one.get_paths()[0].vertices)) for one in points}
    assert len(points) == len(looks) == 36


def test_report_of_runs_that_nothing_was_held_out_for(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    run = MadeUp(tmp_path / "sweep" / "seed=0")
    run.metrics["ppo"], run.evaluation = {"steps": 16.0}, []
    run.complete()
    row = write_sweep_report(tmp_path).with_name("report.md").read_text()
    assert re.search(r"\| as configured \| 1 \|( – \|){6}", row)


def test_report_without_a_sweep_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run of a sweep.*tristage sweep"):
        write_sweep_report(tmp_path)


def test_report_of_a_run_shows_best_of_n_beside_ppo(tmp_path: Path) -> None:
    from pipeline.reporting.report import write_report

    run = MadeUp(tmp_path / "run").complete()
    without_best = write_report(run.path).with_name("score-kl.png").read_bytes()
    run.stage("best")
    write_lines(
        run.path / "best" / "curve.jsonl",
        [{"n": 4, "kl": 0.64, **interval("rm_score", 1.0, 0.1), **interval("gold", 0.4, 0.1)}],
    )
    page = write_report(run.path)
    assert "Best of n" in page.read_text() and "0.64" in page.read_text()
    assert page.with_name("score-kl.png").read_bytes() != without_best
    assert "0.432" in page.read_text() and "best/demonstrations" in page.read_text()
    console = Console(record=True, width=200)
    print_status(console, RunDirectory(run.path))
    assert re.search(r"best\s+finished.*\s+demonstrations: 77", console.export_text())
