"""A few kills of the campaign that `make chaos` runs in full."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from configs.schema import Stage
from tests.chaos.__main__ import table
from tests.chaos.attempt import Kill
from tests.chaos.campaign import TARGETS, Campaign, Life
from tests.chaos.long import Use, growth
from tests.chaos.phases import Outcome

# One life, so that one run without kills is enough: all processes are killed after the first step, a rank
# during a checkpoint, and the launcher by the clock. Other tests kill RM and PPO.
KILLS, SEED = 3, 19978
CASES: list[tuple[Stage, int]] = [("sft", 2)]


@pytest.mark.slow
@pytest.mark.distributed
def test_killed_stages_end_as_if_never_killed(tmp_path: Path) -> None:
    lives = list(Campaign(tmp_path, SEED, CASES).lives(KILLS))
    assert [life.faults for life in lives] == [[]] * len(lives)
    assert all(life.finished for life in lives)
    kills = [kill for life in lives for kill in life.kills]
    assert len(kills) == KILLS
    assert {kill.target for kill in kills} == set(TARGETS), "another seed is needed to strike all targets"
    kinds = {kill.kind for kill in kills}
    assert kinds == {"phase", "checkpoint", "by the clock"}, "another seed is needed to strike at all moments"


def test_what_grows_in_a_long_run_is_named() -> None:
    warming, steady = Use(100, 300, 20, 10, 3), Use(400, 500, 25, 12, 3)
    assert growth([warming, steady, replace(steady, mebibytes=505)]) == []
    assert growth([warming, steady, Use(900, 530, 26, 12, 4)]) == ["open_files", "checkpoints", "mebibytes"]


def test_a_phase_is_whole_only_if_it_recovered_without_a_difference() -> None:
    moments = {"in rm: normalizing, time 1": "phase", "W&B's end": "W&B's end", "write rm/x": "another file"}
    assert {moment: Kill("all", moment=moment).kind for moment in moments} == moments
    ends = [(True, []), (True, ["rankings.jsonl differs"]), (False, ["ended with status 1"])]
    answers = [Outcome("report", "tristage run", "-", *end).row().split(" | ")[3:] for end in ends]
    assert answers == [["yes", "yes |"], ["yes", "no |"], ["no", "no |"]]


def test_the_table_counts_kills_by_what_came_of_them() -> None:
    clock, writing = Kill("rank", 3.0), Kill("all", moment="rename sft/checkpoints/.step-000002.partial")
    lives = [
        Life("sft", 2, [clock, writing], finished=True),
        Life("rm", 1, [clock], finished=True, faults=["the adapter differs"]),
        Life("ppo", 1, [clock], faults=["ended with status 1"]),
    ]
    assert table(lives).splitlines()[2:] == [
        "| all | checkpoint | 1 | 1 | 1 |",
        "| rank | by the clock | 3 | 2 | 1 |",
        "| together | | 4 | 3 | 2 |",
    ]
