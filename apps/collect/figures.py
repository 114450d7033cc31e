"""What a round has come to: counts, and how well people agree with each other and with themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import combinations
from statistics import fmean, median
from typing import Any

import krippendorff
import numpy as np
from scipy.stats import kendalltau

from data.people.agreement import Judged, agreement_of_tasks, judged_by_several, self_agreement
from data.people.events import now
from data.people.results import first_labels
from data.people.round import Round
from stages.maths.statistics import figure, wins

Json = dict[str, Any]
Given = dict[str, dict[str, Judged]]  # by task and labeller
RESAMPLES = 400  # of tasks, for the interval of alpha
SEED = 0


def progress(content: Round, held: int = 0) -> Json:
    """The figures of a round, as JSON.

    Args:
        held: the number of tasks that somebody has before it.
    """
    labels = content.labels
    tasks = len(content.tasks)
    missing = len(content.unlabelled)
    names = dict.fromkeys(showing.labeller for showing in labels.showings.values())
    return {
        "kind": content.settings.kind,
        "run": content.settings.run,
        "total": tasks,
        "labelled": len({showing.task for showing, _ in labels.submitted()}),
        "missing": missing,
        "held": held,
        "skips": dict(Counter(skip.reason for _, skip in labels.skipped())),
        "people": [_person(content, name, now()) for name in names],
        "agreement": agreement(content),
        "win_rate": win_rate(content),
    }


def _person(content: Round, name: str, at: datetime) -> Json:
    mine = [label for showing, label in content.labels.submitted() if showing.labeller == name]
    today = at.astimezone().date()
    return {
        "name": name,
        "done": len(mine),
        "skipped": sum(showing.labeller == name for showing, _ in content.labels.skipped()),
        "today": sum(label.time.astimezone().date() == today for label in mine),
        "median_seconds": median(label.seconds for label in mine) if mine else None,
        "self_agreement": _mean(self_agreement(content, name)),
    }


def win_rate(content: Round) -> Json | None:
    """How often people prefer the second policy of a round of pairs to the first; None for other rounds.

    A tie counts one half, and so does a prompt that both answered alike, about which nobody was asked. As
    long as only a share of the pairs is judged, only that share of these prompts counts. What several people
    say of a pair is averaged.
    """
    policies = content.settings.policies
    if content.settings.kind != "pairs" or len(policies) != 2:
        return None
    won: dict[str, list[float]] = {}
    for showing, label in first_labels(content):
        if label.ranks:
            rank = dict(zip(content.tasks[showing.task].sources, label.ranks, strict=True))
            won.setdefault(showing.task, []).extend(wins([-rank[policies[1]]], [-rank[policies[0]]]))
    if not won:
        return None
    alike = round(content.settings.equal * len(won) / len(content.tasks))
    return {
        "policy": policies[1],
        "against": policies[0],
        **figure([*map(fmean, won.values()), *[0.5] * alike]),
    }


def agreement(content: Round, *, intervals: bool = False) -> Json:
    """How well people agree; None for what cannot be said, as with one person.

    `pairwise` is the agreement of two people (see `agreement_of_tasks`); `tau_b` the mean of
    Kendall's τ-b between two people (Kendall 1945); `alpha` Krippendorff's α for ordinal values (2011). Each
    has its 95 % bootstrap interval over tasks.

    Args:
        intervals: also that of `alpha`, which takes a second or more.
    """
    given = judged_by_several(content)
    return {
        "pairwise": _mean(agreement_of_tasks(content)),
        "tau_b": _mean(_taus(content, given)),
        "alpha": _alpha(given, intervals=intervals),
    }


def _mean(values: Sequence[float]) -> Json | None:
    return dict(figure(values)) if values else None


def _taus(content: Round, given: Given) -> list[float]:
    """τ-b of any two people: on the answers to each prompt, or, of ratings, on all answers they share."""
    ratings = content.settings.kind == "ratings"
    groups: list[Mapping[str, Sequence[float]]] = [_columns(given)] if ratings else list(given.values())
    taus = []
    for by_person in groups:
        pairs = [_tau(a, b) for a, b in combinations(by_person.values(), 2)]
        if defined := [tau for tau in pairs if tau is not None]:
            taus.append(fmean(defined))
    return taus


def _columns(given: Given) -> dict[str, list[float]]:
    """The ratings of each person, one for each task, NaN for those that it has not rated."""
    people = dict.fromkeys(name for by_person in given.values() for name in by_person)
    return {name: [_first(by_person.get(name)) for by_person in given.values()] for name in people}


def _first(values: Judged | None) -> float:
    return float("nan") if values is None else values[0]


def _tau(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Kendall's τ-b; None if it is not defined: one of the two sees no difference at all."""
    both = [(a, b) for a, b in zip(ours, theirs, strict=True) if a == a and b == b]
    if len(both) < 2:
        return None
    tau = float(kendalltau(*zip(*both, strict=True), variant="b").statistic)
    return None if np.isnan(tau) else tau


def _alpha(given: Given, *, intervals: bool) -> Json | None:
    """Krippendorff's α over all answers that several people judged."""
    people = list(dict.fromkeys(name for by_person in given.values() for name in by_person))
    blocks = [_block(by_person, people) for by_person in given.values()]
    value = _alpha_of(blocks)
    if value is None:
        return None
    alpha: Json = {"value": value, "low": None, "high": None, "n": len(blocks)}
    if intervals:
        values = sorted(_resampled(blocks))
        alpha["low"], alpha["high"] = np.percentile(values, [2.5, 97.5]).tolist()
    return alpha


def _block(by_person: dict[str, tuple[int, ...]], people: Sequence[str]) -> np.ndarray:
    """What all people said of the answers of one task, (people, answers), NaN for nothing."""
    answers = len(next(iter(by_person.values())))
    nothing = (float("nan"),) * answers
    return np.array([by_person.get(name, nothing) for name in people], dtype=np.float64)


def _resampled(blocks: Sequence[np.ndarray]) -> Iterator[float]:
    random = np.random.default_rng(SEED)
    for _ in range(RESAMPLES):
        picks = random.integers(len(blocks), size=len(blocks))
        if (value := _alpha_of([blocks[pick] for pick in picks])) is not None:
            yield value


def _alpha_of(blocks: Sequence[np.ndarray]) -> float | None:
    """α of blocks of answers; None if all values are the same, which leaves nothing to agree about."""
    if not blocks:
        return None
    data = np.concatenate(blocks, axis=1)
    if len(np.unique(data[~np.isnan(data)])) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=data, level_of_measurement="ordinal"))
