"""What a round has come to: counts, and how well people agree with each other and with themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
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


def agreement(content: Round) -> Json:
    """How well people agree; None for what cannot be said, as with one person.

    `pairwise` is the agreement of two people (see `agreement_of_tasks`); `tau_b` the mean of
    Kendall's τ-b between two people (Kendall 1945); `alpha` Krippendorff's α for ordinal values (2011). Each
    has its 95 % bootstrap interval over tasks.
    """
    given = judged_by_several(content)
    return {
        "pairwise": _mean(agreement_of_tasks(content)),
        "tau_b": _mean(_taus(content, given)),
        "alpha": _alpha(given),
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


def _alpha(given: Given) -> Json | None:
    """Krippendorff's α over all answers that several people judged."""
    people = list(dict.fromkeys(name for by_person in given.values() for name in by_person))
    blocks = [_block(by_person, people) for by_person in given.values()]
    value = _alpha_of(blocks)
    if value is None:
        return None
    low, high = np.nanpercentile(resampled_alphas(blocks), [2.5, 97.5]).tolist()
    return {"value": value, "low": low, "high": high, "n": len(blocks)}


def _block(by_person: dict[str, tuple[int, ...]], people: Sequence[str]) -> np.ndarray:
    """What all people said of the answers of one task, (people, answers), NaN for nothing."""
    answers = len(next(iter(by_person.values())))
    nothing = (float("nan"),) * answers
    return np.array([by_person.get(name, nothing) for name in people], dtype=np.float64)


def resampled_alphas(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """α of RESAMPLES draws of the blocks, NaN if all drawn values are the same. The page asks every 5 s.

    α depends on the sum of the tasks' coincidence matrices only (Krippendorff 2011, section D), so each is
    counted once, and all draws are sums.
    """
    values = np.unique(np.concatenate([block[~np.isnan(block)] for block in blocks]))
    each = np.array([_coincidences(block, values) for block in blocks])
    random = np.random.default_rng(SEED)
    picks = random.integers(len(blocks), size=(RESAMPLES, len(blocks)))
    drawn = np.array([np.bincount(row, minlength=len(blocks)) for row in picks])
    return _ordinal_alpha(np.tensordot(drawn, each, 1))


def _coincidences(block: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(V, V) pairs of values that different people gave one answer, each answer by its number of people."""
    counts = (block[None] == values[:, None, None]).sum(1).astype(np.float64)  # (V, answers)
    people = counts.sum(0)
    weights = np.divide(1, people - 1, out=np.zeros_like(people), where=people > 1)
    pairs: np.ndarray = (counts * weights) @ counts.T - np.diag(counts @ weights)
    return pairs


def _ordinal_alpha(coincidences: np.ndarray) -> np.ndarray:
    """α of (N, V, V) coincidence matrices with the ordinal metric (Krippendorff 2011, section D)."""
    marginals = coincidences.sum(2)
    n = marginals.sum(1)
    rising = marginals.cumsum(1) - marginals / 2  # between two values lies the difference of these
    metric = (rising[:, :, None] - rising[:, None, :]) ** 2
    observed = (coincidences * metric).sum((1, 2))
    expected = (marginals[:, :, None] * marginals[:, None, :] * metric).sum((1, 2))
    ratio = np.divide((n - 1) * observed, expected, out=np.full(len(n), np.nan), where=expected > 0)
    return 1 - ratio


def _alpha_of(blocks: Sequence[np.ndarray]) -> float | None:
    """α of blocks of answers; None if all values are the same, which leaves nothing to agree about."""
    if not blocks:
        return None
    data = np.concatenate(blocks, axis=1)
    if len(np.unique(data[~np.isnan(data)])) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=data, level_of_measurement="ordinal"))
