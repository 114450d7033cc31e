"""Whose answers people preferred, in a round of pairs."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import NamedTuple

from data.people.results import first_labels
from data.people.round import Round


class Choice(NamedTuple):
    """What people chose of the answers of two policies to a prompt.

    Attributes:
        won: how often they preferred our answer, from 0 to 1; a tie is a half.
        ours, theirs: the answers; both empty if the policies answered alike, about which nobody was asked.
    """

    won: float
    ours: str
    theirs: str


def choices(content: Round, ours: str, theirs: str) -> list[Choice]:
    """What people chose of each pair of these two policies; empty if the round is not about both.

    What several people say of a pair is averaged. A prompt that both answered alike is a tie. As long as only
    a share of the pairs is judged, only that share of these prompts counts.
    """
    if content.settings.kind != "pairs" or {ours, theirs} != set(content.settings.policies):
        return []
    won: dict[str, list[float]] = {}
    for task, value in _won(content, ours, theirs):
        won.setdefault(task, []).append(value)
    judged = []
    for task, values in won.items():
        answers = dict(zip(content.tasks[task].sources, content.tasks[task].completions, strict=True))
        judged.append(Choice(fmean(values), answers[ours], answers[theirs]))
    alike = round(content.settings.equal * len(won) / len(content.tasks))
    return judged + [Choice(0.5, "", "")] * alike


def _won(content: Round, ours: str, theirs: str) -> Iterator[tuple[str, float]]:
    """Each person's choice of each task: 1 for our answer, 0 for theirs, 1/2 for a tie."""
    for showing, label in first_labels(content):
        if label.ranks:
            rank = dict(zip(content.tasks[showing.task].sources, label.ranks, strict=True))
            better = (rank[theirs] > rank[ours]) - (rank[theirs] < rank[ours])
            yield showing.task, 0.5 + 0.5 * better
