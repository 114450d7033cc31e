"""Whether the probabilities of a preference model mean what they say, and the temperature that mends them.

A reward model says that answer w beats answer l with probability σ(r_w − r_l) (Bradley and Terry 1952).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
BINS = 10  # of confidence, from 1/2 to 1


@dataclass(frozen=True)
class Bin:
    """Pairs of about the same confidence.

    Attributes:
        confidence: their mean, in [1/2, 1].
        accuracy: the share of them that are ordered as the labels are.
        weight: their share of all weight.
    """

    confidence: float
    accuracy: float
    weight: float


def probability(margins: Array) -> Array:
    """σ of each margin: the probability that the better answer is given.

    Args:
        margins: r_w − r_l of each pair, (N,).
    """
    small = np.exp(-np.abs(margins))
    return np.where(margins >= 0, 1 / (1 + small), small / (1 + small))


def reliability(margins: Array, weights: Array) -> list[Bin]:
    """Accuracy against confidence (DeGroot and Fienberg 1983), in bins of equal width that hold any pair.

    Confidence is max(p, 1 − p), and a pair is right if p > 1/2; at 1/2 it counts one half.

    Args:
        margins: r_w − r_l of each pair, (N,).
        weights: of each pair, (N,). With one over the number of pairs of its prompt, all prompts count alike.
    """
    confidence = probability(np.abs(margins))
    right = 0.5 + 0.5 * np.sign(margins)
    places = np.minimum((confidence - 0.5) * 2 * BINS, BINS - 1).astype(int)
    total = float(weights.sum())
    bins = []
    for place in range(BINS):
        inside = places == place
        weight = float(weights[inside].sum())
        if weight > 0:
            mean_confidence = float((confidence * weights)[inside].sum()) / weight
            accuracy = float((right * weights)[inside].sum()) / weight
            bins.append(Bin(mean_confidence, accuracy, weight / total))
    return bins


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Σ weight · |accuracy − confidence| over the bins (Naeini et al. 2015), in [0, 1/2]."""
    return sum(one.weight * abs(one.accuracy - one.confidence) for one in bins)


def brier_scores(margins: Array) -> Array:
    """Of each pair, the squared distance of the better answer's probability from 1 (Brier 1950)."""
    return (1 - probability(margins)) ** 2


def best_temperature(margins: Array, weights: Array) -> float | None:
    """T that minimises the mean of −log σ(margin / T) (Guo et al. 2017, section 4.2).

    The loss is convex in 1/T, so its derivative has one root, which bisection finds.

    Returns:
        T > 0. None if there is no such T: all pairs are in order, or no better than by chance.
    """

    def slope(steepness: float) -> float:
        return float(np.average(-margins * probability(-steepness * margins), weights=weights))

    low, high = 0.0, 1.0
    if (margins >= 0).all() or slope(low) >= 0:
        return None
    while slope(high) < 0:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / ((low + high) / 2)


def error_of_calibrated(margins: Array, weights: Array, prompts: Array, draws: int = 400) -> float:
    """The calibration error that a calibrated model stays below in 95 of 100 cases, on these very pairs.

    Labels are drawn from the model's own probabilities (Bröcker and Smith 2007). Pairs of one prompt share
    their answers, so their labels are not independent: each prompt gets one draw.

    Args:
        prompts: the number of each pair's prompt, (N,).
    """
    random = np.random.default_rng(0)
    confidence = probability(np.abs(margins))
    errors = []
    for _ in range(draws):
        drawn = random.random(int(prompts.max()) + 1)[prompts]
        signs = np.where(drawn < confidence, 1.0, -1.0)
        errors.append(expected_calibration_error(reliability(signs * np.abs(margins), weights)))
    return float(np.percentile(errors, 95))
