"""What a round has come to: counts, and how well people agree with each other and with themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import combinations
from statistics import median
from typing import Any

import krippendorff
import numpy as np
from scipy.stats import rankdata

from data.people.agreement import Judged, agreement_of_tasks, judged_by_several, self_agreement
from data.people.choices import choices
from data.people.events import HIGHEST, LOWEST, now
from data.people.round import Round
from stages.maths.statistics import figure, has_interval

Json = dict[str, Any]
Given = dict[str, dict[str, Judged]]  # by task and labeller
RESAMPLES = 400  # of tasks, for the intervals of alpha, and of τ-b of ratings
SEED = 0


def progress(content: Round) -> Json:
    """The figures of a round, as JSON."""
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
        "uncompared": content.uncompared,
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
    """How often people prefer the second policy of a round of pairs to the first; None if nobody said so.

    See `choices` for ties.
    """
    if content.settings.kind != "pairs" or len(content.settings.policies) != 2:
        return None
    against, policy = content.settings.policies
    won = [choice.won for choice in choices(content, policy, against)]
    return {"policy": policy, "against": against, **_figure(won)} if won else None


def agreement(content: Round) -> Json:
    """How well people agree; None for what cannot be said, as with one person.

    `pairwise` is the agreement of two people (see `agreement_of_tasks`); `tau_b` the mean of
    Kendall's τ-b between two people (Kendall 1945); `alpha` Krippendorff's α for ordinal values (2011). Each
    has its 95 % bootstrap interval over tasks, unless there are too few of them; see `has_interval`.
    """
    given, rates = judged_by_several(content), content.settings.kind == "ratings"
    return {
        "pairwise": _mean(agreement_of_tasks(content)),
        "tau_b": _tau_of_ratings(given) if rates else _mean(_taus(given)),
        "alpha": _alpha(given, ranked=not rates),
    }


def _mean(values: Sequence[float]) -> Json | None:
    return _figure(values) if values else None


def _figure(values: Sequence[float]) -> Json:
    return _with_interval(figure(values))


def _with_interval(known: Mapping[str, float]) -> Json:
    """A figure; its ends are None if its tasks are too few, or too alike, for an interval."""
    return dict(known) if has_interval(known) else {**known, "low": None, "high": None}


def _taus(given: Given) -> list[float]:
    """For each prompt, the mean τ-b of any two people on its answers.

    τ-b is the correlation of the signs of all differences (Kendall 1945), so all people need one product. It
    is not defined if one of the two sees no difference at all.
    """
    taus = []
    for by_person in given.values():
        ranks = np.array(list(by_person.values()), dtype=float)
        first, second = np.triu_indices(ranks.shape[1], 1)
        signs = np.sign(ranks[:, first] - ranks[:, second])
        products = signs @ signs.T
        sizes = np.sqrt(np.outer(products.diagonal(), products.diagonal()))
        of_pairs = np.triu(sizes, 1) > 0
        if of_pairs.any():
            taus.append(float((products[of_pairs] / sizes[of_pairs]).mean()))
    return taus


def _tau_of_ratings(given: Given) -> Json | None:
    """The mean τ-b of any two people on the answers that both rated, with its interval over answers."""
    rated = [{name: values[0] for name, values in by_person.items()} for by_person in given.values()]
    drawn = np.concatenate([np.ones((1, len(rated))), _draws(len(rated))]) if rated else np.empty((1, 0))
    people = dict.fromkeys(name for by_person in rated for name in by_person)
    of_pairs = [_taus_of_two(a, b, rated, drawn) for a, b in combinations(people, 2)]
    known = [taus for taus in of_pairs if not np.isnan(taus[0])]
    if not known:
        return None
    means = np.ma.masked_invalid(known).mean(axis=0).filled(np.nan)  # of all answers first, then of each draw
    low, high = np.nanpercentile(means[1:], [2.5, 97.5]).tolist()
    return _with_interval({"value": float(means[0]), "low": low, "high": high, "n": len(rated)})


def _taus_of_two(ours: str, theirs: str, rated: Sequence[Mapping[str, int]], drawn: np.ndarray) -> np.ndarray:
    """τ-b of two people for each draw of answers, (draws,); NaN if one of them sees no difference.

    Args:
        drawn: (draws, answers) how often each answer is drawn.
    """
    size = HIGHEST - LOWEST + 1
    both = [place for place, by_person in enumerate(rated) if {ours, theirs} <= by_person.keys()]
    cells = np.zeros((len(both), size * size))
    cells[range(len(both)), [_cell(rated[place][ours], rated[place][theirs]) for place in both]] = 1
    tables = (drawn[:, both] @ cells).reshape(-1, size, size)
    signs = np.sign(np.subtract.outer(np.arange(size), np.arange(size)))
    alike = np.einsum("dij,dkl,ik,jl->d", tables, tables, signs, signs, optimize=True)
    differences = [
        np.einsum("di,dk,ik->d", margin, margin, np.abs(signs), optimize=True)
        for margin in (tables.sum(2), tables.sum(1))
    ]
    sizes = np.sqrt(differences[0] * differences[1])
    return np.divide(alike, sizes, out=np.full(len(sizes), np.nan), where=sizes > 0)


def _cell(ours: int, theirs: int) -> int:
    """The place of two ratings in the table of all pairs of ratings."""
    return (ours - LOWEST) * (HIGHEST - LOWEST + 1) + theirs - LOWEST


def _draws(tasks: int) -> np.ndarray:
    """(RESAMPLES, tasks) how often each task is in each bootstrap sample."""
    picks = np.random.default_rng(SEED).integers(tasks, size=(RESAMPLES, tasks))
    return np.array([np.bincount(row, minlength=tasks) for row in picks])


def _alpha(given: Given, *, ranked: bool) -> Json | None:
    """Krippendorff's α over all answers that several people judged.

    Args:
        ranked: the values are ranks. Answers that tie get the mean of their ranks, since 1, 1, 1, 2 and
            1, 2, 3, 4 place the last answer alike.
    """
    people = list(dict.fromkeys(name for by_person in given.values() for name in by_person))
    blocks = [_block(by_person, people, ranked) for by_person in given.values()]
    value = _alpha_of(blocks)
    if value is None:
        return None
    low, high = np.nanpercentile(resampled_alphas(blocks), [2.5, 97.5]).tolist()
    return _with_interval({"value": value, "low": low, "high": high, "n": len(blocks)})


def _block(by_person: dict[str, Judged], people: Sequence[str], ranked: bool) -> np.ndarray:
    """What all people said of the answers of one task, (people, answers), NaN for nothing."""
    answers = len(next(iter(by_person.values())))
    nothing = (float("nan"),) * answers
    given = {name: rankdata(values) if ranked else values for name, values in by_person.items()}
    return np.array([given.get(name, nothing) for name in people], dtype=np.float64)


def resampled_alphas(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """α of RESAMPLES draws of the blocks, NaN if all drawn values are the same.

    α depends on the sum of the tasks' coincidence matrices only (Krippendorff 2011, section D), so each is
    counted once, and all draws are sums.
    """
    values = np.unique(np.concatenate([block[~np.isnan(block)] for block in blocks]))
    each = np.array([_coincidences(block, values) for block in blocks])
    return _ordinal_alpha(np.tensordot(_draws(len(blocks)), each, 1))


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
