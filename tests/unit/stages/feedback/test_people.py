"""What several people said of one prompt becomes one ranking."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.people.events import Labels, Shown, Submitted
from data.people.results import rankings
from data.people.round import Round, Settings, Task
from stages.feedback.people import merge

TEXTS = ("a", "b", "c", "d")


def round_of(*rankings: tuple[str, str, tuple[int, ...]], again: tuple[int, ...] = ()) -> Round:
    """A round of tasks `t` and `u`: each ranking is (task, person, ranks)."""
    tasks = {
        name: Task(
            id=name, prompt=f"prompt {name}", completions=TEXTS, completion_ids=((1,), (2,), (3,), (4,))
        )
        for name in ("t", "u")
    }
    events: list[Shown | Submitted] = []
    for number, (task, person, ranks) in enumerate(rankings):
        showing = str(number)
        events.append(
            Shown(showing=showing, task=task, labeller=person, order=(0, 1, 2, 3), again=number in again)
        )
        events.append(Submitted(showing=showing, submission=showing, seconds=1, ranks=ranks))
    settings = Settings(kind="rankings", run="r", answers=4, policies=("sft",), prompts="")
    return Round(Path(), settings, tasks, Labels(events))


def test_one_person_keeps_its_order_and_ties() -> None:
    (row,) = merge(round_of(("t", "anna", (2, 0, 0, 1))))
    assert (row["completions"], row["ranks"]) == (["b", "c", "d", "a"], [0, 0, 1, 2])
    assert row["completion_ids"] == [(2,), (3,), (4,), (1,)]
    assert row["labeller"] == "anna" and row["scores"][0] == row["scores"][1] > row["scores"][2]


def test_people_who_contradict_each_other_tie() -> None:
    (row,) = merge(round_of(("t", "anna", (0, 1, 2, 3)), ("t", "ben", (1, 0, 2, 3))))
    assert row["ranks"] == [0, 0, 1, 2] and set(row["completions"][:2]) == {"a", "b"}
    (row,) = merge(round_of(("t", "anna", (0, 1, 2, 3)), ("t", "ben", (3, 2, 1, 0))))
    assert row["ranks"] == [0, 0, 0, 0] and row["scores"] == pytest.approx([0] * 4)


def test_the_majority_decides_and_a_prompt_has_one_row() -> None:
    rows = merge(
        round_of(
            ("t", "anna", (0, 1, 2, 3)),
            ("t", "ben", (0, 1, 2, 3)),
            ("t", "carol", (1, 0, 2, 3)),
            ("u", "anna", (3, 2, 1, 0)),
        )
    )
    assert [(row["task"], row["labeller"]) for row in rows] == [("t", "anna, ben, carol"), ("u", "anna")]
    assert rows[0]["completions"] == ["a", "b", "c", "d"] and rows[0]["ranks"] == [0, 1, 2, 3]
    assert rows[1]["completions"] == ["d", "c", "b", "a"]


def test_a_ranking_keeps_the_label_of_its_prompts_source() -> None:
    content = round_of(("t", "anna", (0, 1, 2, 3)), ("t", "ben", (0, 1, 2, 3)))
    content.tasks["t"] = content.tasks["t"].model_copy(update={"prompt_source": "web"})
    assert [row["source"] for row in [*rankings(content), *merge(content)]] == ["web"] * 3


def test_what_a_person_gave_again_does_not_count_twice() -> None:
    once = round_of(("t", "anna", (0, 1, 2, 3)), ("t", "ben", (1, 0, 2, 3)))
    twice = round_of(
        ("t", "anna", (0, 1, 2, 3)), ("t", "ben", (1, 0, 2, 3)), ("t", "anna", (0, 1, 2, 3)), again=(2,)
    )
    assert merge(once) == merge(twice)
