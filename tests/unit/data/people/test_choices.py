"""Whose answers people preferred."""

from __future__ import annotations

from pathlib import Path

from data.people.choices import Choice, choices
from data.people.events import Labels, Shown, Submitted
from data.people.round import Kind, Round, Settings, Task

TEXTS = {"sft": "of sft", "ppo": "of ppo"}


def round_of(*given: tuple[str, str, tuple[int, int]], kind: Kind = "pairs", equal: int = 0) -> Round:
    """A round of four tasks, the second in the other order: each label is (task, person, ranks)."""
    orders = {"a": ("sft", "ppo"), "b": ("ppo", "sft"), "c": ("sft", "ppo"), "d": ("sft", "ppo")}
    tasks = {
        name: Task(id=name, prompt=name, completions=tuple(TEXTS[one] for one in order), sources=order)
        for name, order in orders.items()
    }
    events: list[Shown | Submitted] = []
    for number, (task, person, ranks) in enumerate(given):
        events.append(Shown(showing=str(number), task=task, labeller=person, order=(0, 1)))
        events.append(Submitted(showing=str(number), submission=str(number), seconds=1, ranks=ranks))
    settings = Settings(kind=kind, run="r", answers=1, policies=("sft", "ppo"), prompts="", equal=equal)
    return Round(Path(), settings, tasks, Labels(events))


def test_a_choice_is_that_of_the_policy_wherever_it_stood() -> None:
    found = choices(
        round_of(("a", "anna", (1, 0)), ("b", "anna", (0, 1)), ("c", "anna", (0, 0))), "ppo", "sft"
    )
    assert found == [
        Choice(1.0, "of ppo", "of sft"), Choice(1.0, "of ppo", "of sft"), Choice(0.5, "of ppo", "of sft")
    ]  # fmt: skip
    lost = choices(round_of(("a", "anna", (1, 0))), "sft", "ppo")
    assert lost == [Choice(0.0, "of sft", "of ppo")]


def test_people_are_averaged_and_equal_answers_tie() -> None:
    given = round_of(("a", "anna", (1, 0)), ("a", "ben", (0, 1)), ("b", "ben", (0, 1)), equal=4)
    assert [choice.won for choice in choices(given, "ppo", "sft")] == [0.5, 1.0, 0.5, 0.5]  # half of 4


def test_other_policies_and_other_rounds_say_nothing() -> None:
    assert choices(round_of(("a", "anna", (1, 0))), "ppo", "base") == []
    assert choices(round_of(("a", "anna", (1, 0)), kind="rankings"), "ppo", "sft") == []
