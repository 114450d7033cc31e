"""How good a reward model is on held-out rankings: accuracy where it is hard, and against simple rules.

A pair is two answers to one prompt that the labels order. Pairs of one prompt are not independent, so every
figure is a mean over prompts, and its interval draws prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import numpy as np

from stages.maths import calibration
from stages.maths.orders import ordered_pairs
from stages.maths.statistics import Figure, figure, figure_of, wins

Array = np.ndarray
MISTAKES = 10
WIDEST = 0.2  # an interval of accuracy that still tells a good model from a poor one


@dataclass(frozen=True)
class ScoredRanking:
    """A held-out ranking with what is known of its answers, each a list of K.

    Attributes:
        ranks: 0 is the best; equal ranks tie.
        rewards: the reward model's scores, on the scale that it was trained on.
        lengths: in tokens.
        nats: log-likelihood of each token under the base, a mean over the answer's tokens.
        words: the score of a bag of words, higher for what the training rankings prefer.
            Both may be empty: then they are no baseline.
        labels: the labeller's own scores, if it gave any.
        source: the label of one of several sources.
        key: tells prompts apart; `prompt`, the last message of a conversation, by default.
    """

    prompt: str
    answers: list[str]
    ranks: list[int]
    rewards: list[float]
    lengths: list[int]
    nats: list[float]
    words: list[float]
    labels: list[float] | None = None
    source: str = ""
    key: str = ""

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Positions of the better and of the worse answer of each pair."""
        return ordered_pairs(self.ranks)


def ranking_of(row: Mapping[str, Any]) -> ScoredRanking:
    """The ranking of a row of `rm/evaluation.jsonl`, which may have further keys."""
    return ScoredRanking(**{one.name: row[one.name] for one in fields(ScoredRanking) if one.name in row})


@dataclass(frozen=True)
class Pairs:
    """All pairs of all rankings, (N,) each.

    Attributes:
        rows: the place of each pair's ranking in `rankings`.
        prompts: the number of each pair's prompt. Several rankings may be of one prompt.
        better, worse: positions of its answers.
        margins: the reward of the better answer less that of the worse.
        weights: one over the number of pairs of the prompt.
    """

    rankings: Sequence[ScoredRanking]
    rows: Array
    prompts: Array
    better: Array
    worse: Array
    margins: Array
    weights: Array

    def difference(self, values: Callable[[ScoredRanking], Sequence[float]]) -> Array:
        """Of each pair, a value of the better answer less that of the worse, (N,)."""
        columns = [values(ranking) for ranking in self.rankings]
        triples = zip(self.rows, self.better, self.worse, strict=True)
        return np.array([columns[row][i] - columns[row][j] for row, i, j in triples], dtype=float)


def pairs_of(rankings: Sequence[ScoredRanking], prompts: Sequence[int] | None = None) -> Pairs:
    """The pairs of rankings that have any.

    Args:
        prompts: the number of each ranking's prompt; by default, each has its own.
    """
    numbers = range(len(rankings)) if prompts is None else prompts
    useful = [(ranking, number) for ranking, number in zip(rankings, numbers, strict=True) if ranking.pairs]
    kept = [ranking for ranking, _ in useful]
    found = [(row, i, j) for row, ranking in enumerate(kept) for i, j in ranking.pairs]
    rows, better, worse = (np.array(column, dtype=int) for column in zip(*found, strict=True))
    _, of_rankings = np.unique([number for _, number in useful], return_inverse=True)
    of_pairs = of_rankings[rows]
    margins = np.array([kept[row].rewards[i] - kept[row].rewards[j] for row, i, j in found])
    weights = 1 / np.bincount(of_pairs)[of_pairs]
    return Pairs(kept, rows, of_pairs, better, worse, margins, weights)


def share_in_order(pairs: Pairs, margins: Array, where: Array | None = None) -> Figure:
    """Share of the pairs that margins order as the labels do: the accuracy of whatever gave the margins.

    Args:
        margins: of each pair, (N,). At 0, the pair counts one half.
        where: the pairs that count, (N,), at least one; all by default.
    """
    right = wins(margins.tolist(), np.zeros_like(margins).tolist())
    return figure(_by_prompt(pairs, right, where))


def _by_prompt(pairs: Pairs, values: Sequence[float], where: Array | None) -> list[float]:
    """The mean over each prompt's pairs, for the prompts that have any."""
    inside = np.ones(len(pairs.prompts), dtype=bool) if where is None else where
    counts = np.bincount(pairs.prompts[inside])
    sums = np.bincount(pairs.prompts[inside], weights=np.asarray(values, dtype=float)[inside])
    means: list[float] = (sums[counts > 0] / counts[counts > 0]).tolist()
    return means


def baseline_margins(pairs: Pairs) -> dict[str, Array]:
    """The margins of simple rules: the longer, the shorter, the likelier answer, its words."""
    longer = pairs.difference(lambda one: one.lengths)
    margins = {"longer": longer, "shorter": -longer}
    if all(ranking.nats for ranking in pairs.rankings):
        margins["likelier"] = pairs.difference(lambda one: one.nats)
    if all(ranking.words for ranking in pairs.rankings):
        margins["bag of words"] = pairs.difference(lambda one: one.words)
    return margins


def lead_over(pairs: Pairs, margins: Array) -> Figure:
    """The accuracy less that of other margins, paired: prompts are drawn with both."""
    zeros = [0.0] * len(margins)
    ours, theirs = wins(pairs.margins.tolist(), zeros), wins(margins.tolist(), zeros)
    return figure(_by_prompt(pairs, np.subtract(ours, theirs).tolist(), None))


def groups(pairs: Pairs) -> dict[str, dict[str, Figure]]:
    """Accuracy by source, by distance of ranks, by the labels' margin, and by length."""
    distance = pairs.difference(lambda one: [-rank for rank in one.ranks])
    longer = pairs.difference(lambda one: one.lengths)
    split: dict[str, dict[str, Array]] = {
        "source": _sources(pairs),
        "distance of ranks": {str(int(value)): distance == value for value in np.unique(distance)},
        "length": {
            "the better answer is shorter": longer < 0,
            "equal lengths": longer == 0,
            "the better answer is longer": longer > 0,
        },
        "difference of lengths": _thirds(np.abs(longer), "tokens"),
    }
    if all(ranking.labels is not None for ranking in pairs.rankings):
        margin = pairs.difference(lambda one: one.labels or [])
        split["margin of the labels"] = _thirds(margin, "")
    return {
        name: {
            part: share_in_order(pairs, pairs.margins, where) for part, where in parts.items() if where.any()
        }
        for name, parts in split.items()
        if parts
    }


def _sources(pairs: Pairs) -> dict[str, Array]:
    """The pairs of each source, if there are several."""
    sources = np.array([ranking.source for ranking in pairs.rankings])[pairs.rows]
    names = sorted(set(sources.tolist()))
    return {name or "unnamed": sources == name for name in names} if len(names) > 1 else {}


def _thirds(values: Array, unit: str) -> dict[str, Array]:
    """Three parts of about equal size, by value; two if the bounds between them are equal as printed."""
    bounds = sorted({float(f"{bound:.3g}") for bound in np.quantile(values, [1 / 3, 2 / 3])})
    unit = f" {unit}" if unit else ""
    parts, below = {}, -np.inf
    for bound in bounds:
        parts[f"up to {bound:.3g}{unit}"] = (values > below) & (values <= bound)
        below = bound
    return parts | {f"above {below:.3g}{unit}": values > below}


def length_correlation(
    rankings: Sequence[ScoredRanking], prompts: Sequence[int] | None = None
) -> Figure | None:
    """Pearson's correlation of reward and length among the answers to a prompt, a mean over prompts.

    None if no prompt has answers that differ in both.

    Args:
        prompts: the number of each ranking's prompt; by default, each has its own.
    """
    found: dict[int, list[float]] = {}
    for place, ranking in enumerate(rankings):
        rewards, lengths = np.array(ranking.rewards), np.array(ranking.lengths, dtype=float)
        if rewards.std() > 0 and lengths.std() > 0:
            of_prompt = found.setdefault(place if prompts is None else prompts[place], [])
            of_prompt.append(float(np.corrcoef(rewards, lengths)[0, 1]))
    return figure([float(np.mean(values)) for values in found.values()]) if found else None


def calibration_of(pairs: Pairs) -> dict[str, Any]:
    """How far the model's probabilities are from the truth, and the temperature that brings them nearest."""
    bins = calibration.reliability(pairs.margins, pairs.weights)
    bound = calibration.error_of_calibrated(pairs.margins, pairs.weights, pairs.prompts)
    brier = calibration.brier_scores(pairs.margins)
    return {
        "bins": [vars(one) for one in bins],
        "error": calibration.expected_calibration_error(bins),
        "error_of_calibrated": bound,
        "brier": figure(_by_prompt(pairs, brier.tolist(), None)),
        "temperature": calibration.best_temperature(pairs.margins, pairs.weights),
    }


def mistakes(pairs: Pairs) -> list[dict[str, Any]]:
    """The pairs that the model is surest of and wrong about, the surest first; one of each prompt."""
    order = np.argsort(pairs.margins, kind="stable")
    found: dict[int, dict[str, Any]] = {}
    for pair in order[pairs.margins[order] < 0]:
        prompt = int(pairs.prompts[pair])
        ranking = pairs.rankings[pairs.rows[pair]]
        found.setdefault(
            prompt,
            {
                "prompt": ranking.prompt,
                "better": ranking.answers[pairs.better[pair]],
                "worse": ranking.answers[pairs.worse[pair]],
                "margin": float(pairs.margins[pair]),
            },
        )
    return list(found.values())[:MISTAKES]


def tied_share(rankings: Sequence[ScoredRanking]) -> float:
    """The share of the pairs of answers that the labels call a tie; rankings that tie wholly are not here."""
    ties = total = 0
    for ranking in rankings:
        k = len(ranking.ranks)
        total += k * (k - 1) // 2
        ties += k * (k - 1) // 2 - len(ranking.pairs)
    return ties / max(1, total)


class Noise(NamedTuple):
    """How far labels that are alike in kind agree.

    Attributes:
        between: who gave them.
        agreement: the share of pairs that both order which they order alike.
    """

    between: Literal["two people", "the labeller and itself"]
    agreement: Mapping[str, float]


def noise_of(of_single_people: bool, metrics: Mapping[str, float]) -> Noise | None:
    """The agreement of two people, if each ranking is one person's, or of a function asked twice.

    The rankings of two labellers are those that they agree about, and those that merge several people are
    less noisy than one of them, so there the agreement bounds nothing. None if it is not known.
    """
    if of_single_people and "label_agreement" in metrics:
        return Noise("two people", figure_of(metrics, "label_agreement"))
    if "label_self_agreement" in metrics:
        return Noise("the labeller and itself", figure_of(metrics, "label_self_agreement"))
    return None


def ceiling_of(agreement: Mapping[str, float]) -> Figure:
    """The highest accuracy that is possible against one label of a pair, by the agreement of two.

    If each label orders a pair rightly with probability q, by itself, two agree with a = q² + (1 − q)².
    Whoever is always right agrees with one of them with q = (1 + √(2a − 1)) / 2, which is above a. It is
    concave in a, so it bounds the mean, too, if some pairs are harder than others.
    """
    return {
        part: value if part == "n" else (1 + math.sqrt(max(0.0, 2 * value - 1))) / 2
        for part, value in agreement.items()
    }


def ceiling_of_agreed(agreement: Mapping[str, float]) -> Figure:
    """A bound of the accuracy against the majority of three votes, by the agreement of two.

    If each vote orders a pair rightly with probability q, two that agree are right with r = q² / a, where
    a = q² + (1 − q)². With s = √(2a − 1) that is r = 1/2 + s / (1 + s²). Three votes are right with
    q² (3 − 2q), which is at most r. So r bounds rows with two and with three votes. a r = q² and
    q² (3 − 2q) are concave in a, so it bounds their means, too, if some pairs are harder than others.
    """
    found = {}
    for part, value in agreement.items():
        root = math.sqrt(max(0.0, 2 * value - 1))
        found[part] = value if part == "n" else 0.5 + root / (1 + root**2)
    return found


def prompt_numbers(rankings: Sequence[ScoredRanking]) -> list[int]:
    """The number of each ranking's prompt: rankings of one prompt, such as those of two rounds, share it."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(one.key or one.prompt, len(numbers)) for one in rankings]


def reward_report(
    rankings: Sequence[ScoredRanking],
    noise: Noise | None,
    prompts: Sequence[int] | None = None,
) -> dict[str, Any]:
    """All figures of a reward model on held-out rankings, as JSON.

    Args:
        rankings: at least one must have a pair.
        noise: of the labels, if it is known.
        prompts: the number of each ranking's prompt; by default, each has its own.
    """
    pairs = pairs_of(rankings, prompts)
    margins = baseline_margins(pairs)
    baselines = {name: share_in_order(pairs, of) for name, of in margins.items()}
    best = max(baselines, key=lambda name: baselines[name]["value"])
    return {
        "accuracy": share_in_order(pairs, pairs.margins),
        "pairs": len(pairs.prompts),
        "baselines": baselines,
        "best_baseline": best,
        "lead": lead_over(pairs, margins[best]),
        "groups": groups(pairs),
        "calibration": calibration_of(pairs),
        "length_correlation": length_correlation(rankings, prompts),
        "between": noise.between if noise else None,
        "agreement": dict(noise.agreement) if noise else None,
        "ceiling": ceiling_of(noise.agreement) if noise else None,
        "tied": tied_share(rankings),
        "mistakes": mistakes(pairs),
    }
