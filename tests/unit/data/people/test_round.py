"""Labelling rounds: what is missing of one, and where those of a run are."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.people.events import Labels
from data.people.round import Round, Settings, Task


def round_of(tasks: int) -> Round:
    settings = Settings(kind="rankings", run="tiny", answers=0, policies=(), prompts="data.rm")
    return Round(Path(), settings, {str(i): Task(id=str(i), prompt=f"p{i}") for i in range(tasks)}, Labels())


@pytest.mark.parametrize(("share", "missing"), [(0.07, 7), (0.071, 8), (0.14, 14), (0.29, 29), (1.0, 100)])
def test_a_share_of_the_tasks_is_rounded_up_and_no_further(share: float, missing: int) -> None:
    assert round_of(100).missing(share) == missing
