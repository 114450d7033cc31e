"""Labelling rounds: what is missing of one, and where those of a run are."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from apps.collect.report import rounds_of
from configs.errors import UserError
from data.people.events import Labels
from data.people.round import Round, Settings, Task, rounds
from pipeline.state.run_directory import RunDirectory
from pipeline.terminal.show import print_status
from tests.support.finished_run import Run as MadeUp
from tests.support.people import new_round


def round_of(tasks: int) -> Round:
    settings = Settings(kind="rankings", run="tiny", answers=0, policies=(), prompts="data.rm")
    return Round(Path(), settings, {str(i): Task(id=str(i), prompt=f"p{i}") for i in range(tasks)}, Labels())


@pytest.mark.parametrize(("share", "missing"), [(0.07, 7), (0.071, 8), (0.14, 14), (0.29, 29), (1.0, 100)])
def test_a_share_of_the_tasks_is_rounded_up_and_no_further(share: float, missing: int) -> None:
    assert round_of(100).missing(share) == missing


def test_a_round_in_a_folder_of_another_name_is_seen_by_all(tmp_path: Path) -> None:
    """Such as the one that the judge `people` proposes."""
    run = RunDirectory(MadeUp(tmp_path).complete().path)
    for name in ("pairs-sft-base", "pairs"):
        new_round(run.path / "people" / name, "pairs", tasks=2, answers=2)
    (run.path / "people/empty").mkdir()
    names = ["pairs", "pairs-sft-base"]
    assert [content.folder.name for content in rounds(run.path)] == names
    assert [content.folder.name for content in rounds_of(run, None)] == names
    console = Console(record=True, width=200)
    print_status(console, run)
    shown = console.export_text()
    assert all(f"people: {name}, 0 of 2 tasks done" in shown for name in names)


def test_a_folder_without_a_round_is_refused(tmp_path: Path) -> None:
    for folder in (None, tmp_path / "people/other"):
        with pytest.raises(UserError, match=r"no labelling round is there. Begin one with"):
            rounds_of(RunDirectory(tmp_path), folder)
