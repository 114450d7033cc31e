"""How well people agree, in pairs of answers: the ceiling of what a reward model can learn from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from statistics import fmean

from data.people.results import first_labels
from data.people.round import Round


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


def _sign(difference: float) -> int:
    return (difference > 0) - (difference < 0)


def agreement_of_prompts(content: Round) -> list[float]:
    """For each prompt that several people ranked, the mean agreement of any two of them."""
    return [
        fmean(pairwise_agreement(a, b) for a, b in combinations(rankings, 2))
        for rankings in _rankings_of_tasks(content)
        if len(rankings) > 1
    ]


def _rankings_of_tasks(content: Round) -> Iterator[list[tuple[int, ...]]]:
    """For each task the rankings that different people gave."""
    given: dict[str, dict[str, tuple[int, ...]]] = {}
    for showing, label in first_labels(content):
        if label.ranks:
            given.setdefault(showing.task, {})[showing.labeller] = label.ranks
    for by_labeller in given.values():
        yield list(by_labeller.values())


def self_agreement(content: Round, labeller: str) -> list[float]:
    """For each task that a person ranked twice, how well the two rankings agree."""
    given: dict[str, list[tuple[int, ...]]] = {}
    for showing, label in content.labels.submitted():
        if showing.labeller == labeller and label.ranks:
            given.setdefault(showing.task, []).append(label.ranks)
    return [pairwise_agreement(*rankings) for rankings in given.values() if len(rankings) == 2]
