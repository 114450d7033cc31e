"""What people say of PPO stands in the report, or how they are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data.people.events import LabelFile, Shown, Submitted
from data.people.round import LABELS, Settings, Task, create_round
from pipeline.reporting.people import people_win_rate
from pipeline.reporting.report import write_report
from pipeline.state.results import read_results
from tests.support.finished_run import Run, write_lines

PRESENT = {"sft": "sft" * 20, "ppo": "ppo" * 20}


def unjudged(folder: Path) -> Any:
    """A finished run without a gold score."""
    run = Run(folder, judge=None)
    run.metrics["ppo"] = {name: value for name, value in run.metrics["ppo"].items() if "gold" not in name}
    del run.metrics["ppo"]["win_rate"]
    for stage in ("sft", "rm", "ppo"):
        run.stage(stage)
    rows = [{name: value for name, value in row.items() if "gold" not in name} for row in run.evaluation]
    write_lines(folder / "ppo/evaluation.jsonl", rows)
    return run


def judged(run: Path, wins: int, pairs: int, adapters: dict[str, str]) -> None:
    """A round in which PPO won some of the pairs."""
    tasks = [
        Task(id=str(number), prompt=f"p{number}", completions=("a", "b"), sources=("sft", "ppo"))
        for number in range(pairs)
    ]
    settings = Settings(
        kind="pairs", run="r", answers=1, policies=("sft", "ppo"), prompts="", adapters=adapters
    )
    create_round(run / "people/pairs", settings, tasks)
    labels = LabelFile(run / "people/pairs" / LABELS)
    for number, task in enumerate(tasks):
        labels.append(Shown(showing=task.id, task=task.id, labeller="anna", order=(0, 1)))
        ranks = (1, 0) if number < wins else (0, 1)
        labels.append(Submitted(showing=task.id, submission=task.id, seconds=1, ranks=ranks))


def page(folder: Path) -> str:
    return (write_report(folder).parent / "report.md").read_text()


def test_a_run_without_a_judge_tells_how_people_are_asked(tmp_path: Path) -> None:
    unjudged(tmp_path)
    assert "People can tell: tristage collect pairs --run-dir" in page(tmp_path)


def test_the_win_rate_by_people_is_in_the_report(tmp_path: Path) -> None:
    unjudged(tmp_path)
    judged(tmp_path, 15, 20, PRESENT)
    figures = people_win_rate(read_results(tmp_path))
    assert (figures["win_rate"], figures["win_rate_n"]) == (0.75, 20)
    text = page(tmp_path)
    assert "win rate against SFT, by people" in text and "n = 20" in text
    assert "no gold score" not in text


@pytest.mark.parametrize("adapters", [{}, PRESENT | {"ppo": "0" * 60}])
def test_answers_of_other_policies_say_nothing(tmp_path: Path, adapters: dict[str, str]) -> None:
    unjudged(tmp_path)
    judged(tmp_path, 15, 20, adapters)
    assert people_win_rate(read_results(tmp_path)) == {}
