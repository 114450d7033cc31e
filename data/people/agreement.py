"""How well people agree, which bounds what a reward model can learn from them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import fmean

from data.people.events import Submitted
from data.people.results import first_labels
from data.people.round import Round

Judged = tuple[int, ...]


def pairwise_agreement(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The share of pairs of answers that two rankings order alike, in [0, 1].

    If one of them calls a pair a tie and the other does not, the pair counts one half, as in a win rate.

    Args:
        ours: a number for each answer, (K,), at least two.
        theirs: those of the other ranking, of the same answers.
    """
    pairs = combinations(range(len(ours)), 2)
    signs = [(_sign(ours[i] - ours[j]), _sign(theirs[i] - theirs[j])) for i, j in pairs]
    return fmean(1 - abs(mine - other) / 2 for mine, other in signs)


def ordered_agreement(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """The share of the pairs that both rankings order, which they order alike; None if there is no such pair.

    So it is on the scale of a reward model's accuracy, which leaves out the pairs that a ranking ties.
    """
    pairs = combinations(range(len(ours)), 2)
    products = [_sign(ours[i] - ours[j]) * _sign(theirs[i] - theirs[j]) for i, j in pairs]
    both = [product > 0 for product in products if product]
    return fmean(both) if both else None


def _sign(difference: float) -> int:
    return (difference > 0) - (difference < 0)


def near(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """1 if two ratings of one answer are at most one point apart, else 0."""
    return float(abs(ours[0] - theirs[0]) <= 1)


def agreement_of_tasks(content: Round) -> list[float]:
    """For each task that several people judged, the mean agreement of any two of them.

    Of rankings it is `pairwise_agreement`, of ratings `near`.
    """
    return [
        fmean(_agreement(content, a, b) for a, b in combinations(by_labeller.values(), 2))
        for by_labeller in judged_by_several(content).values()
    ]


def ordered_agreement_of_tasks(content: Round) -> list[float]:
    """For each task that several people ranked, the mean `ordered_agreement` of any two of them.

    Tasks of which no two people order the same pair are left out.
    """
    found = []
    for by_labeller in judged_by_several(content).values():
        pairs = [ordered_agreement(a, b) for a, b in combinations(by_labeller.values(), 2)]
        if known := [share for share in pairs if share is not None]:
            found.append(fmean(known))
    return found


def judged_by_several(content: Round) -> dict[str, dict[str, Judged]]:
    """What each person said of each task that several judged, by task and labeller."""
    given: dict[str, dict[str, Judged]] = {}
    for showing, label in first_labels(content):
        if values := _judged(label):
            given.setdefault(showing.task, {})[showing.labeller] = values
    return {task: by_labeller for task, by_labeller in given.items() if len(by_labeller) > 1}


def self_agreement(content: Round, labeller: str) -> list[float]:
    """For each task that a person judged twice, how well its two judgements agree."""
    given: dict[str, list[Judged]] = {}
    for showing, label in content.labels.submitted():
        if showing.labeller == labeller and (values := _judged(label)):
            given.setdefault(showing.task, []).append(values)
    return [_agreement(content, *both) for both in given.values() if len(both) == 2]


def _judged(label: Submitted) -> Judged:
    """What a person said of a task: the ranks of its answers, or their rating; empty for a text."""
    return label.ranks or (() if label.rating is None else (label.rating,))


def _agreement(content: Round, ours: Judged, theirs: Judged) -> float:
    agree = near if content.settings.kind == "ratings" else pairwise_agreement
    return agree(ours, theirs)
