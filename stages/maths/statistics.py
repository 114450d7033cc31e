"""Statistics of scores: means with intervals, running moments, best of n, wins, repetition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor


def expected_best(scores: Sequence[float], values: Sequence[float], k: int) -> float:
    """Expected value of the best-scored of k answers, over all choices of k from these (Nakano et al. 2021).

    Args:
        scores: what the best is chosen by.
        values: what is asked of the chosen one.
    """
    order = sorted(range(len(scores)), key=lambda i: scores[i])
    ways = (math.comb(below, k - 1) * values[i] for below, i in enumerate(order))
    return sum(ways) / math.comb(len(scores), k)


def kl_of_best(n: int) -> float:
    """KL of best-of-n to the policy sampled from, nats: log n - (n - 1)/n (Stiennon et al. 2020, appendix G).

    Exact where no two answers tie; else, an upper bound (Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n


def wins(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """1 where ours is the higher score, 0 where theirs is, 1/2 where they tie."""
    return [0.5 + 0.5 * ((a > b) - (a < b)) for a, b in zip(ours, theirs, strict=True)]


def repeated_bigrams(text: str) -> float:
    """Share of a text's word bigrams that repeat an earlier one, in [0, 1)."""
    words = text.lower().split()
    bigrams = list(pairwise(words))
    return 1 - len(set(bigrams)) / len(bigrams) if bigrams else 0.0


RESAMPLES = 2000


def mean_with_interval(name: str, values: Sequence[float], seed: int = 0) -> dict[str, float]:
    """Mean and its 95 % percentile bootstrap interval (Efron 1979): `name`, `name_low`, `name_high`.

    Args:
        values: one for each prompt: several figures of one prompt are not independent, so they are
            averaged before they come here.
    """
    array = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(len(array), size=(RESAMPLES, len(array)))
    low, high = np.percentile(array[picks].mean(axis=1), [2.5, 97.5])
    return {name: float(array.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}


@dataclass
class RunningMoments:
    """Mean and variance of all rewards so far, by the parallel update of Chan et al. 1979."""

    count: float = 0.0
    mean: float = 0.0
    square: float = 0.0  # sum of squared deviations

    def update(self, values: Tensor) -> None:
        """Take in a batch, (B,), which may be empty."""
        if not len(values):
            return
        values = values.double()
        count = self.count + len(values)
        difference = float(values.mean()) - self.mean
        self.square += float((values - values.mean()).square().sum())
        self.square += difference**2 * self.count * len(values) / count
        self.mean += difference * len(values) / count
        self.count = count

    @property
    def deviation(self) -> float:
        return math.sqrt(self.square / self.count) if self.count else 1.0
