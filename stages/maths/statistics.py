"""Statistics: means of parts, intervals, running moments, best of n, wins, repetition."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor

RESAMPLES = 2000
AT_ONCE = 2**22  # values that are drawn together: 32 MiB, and as much for their places
LEAST = 10  # values, for an interval to be taken seriously


@dataclass(frozen=True)
class Mean:
    """A sum and the count that divides it. Means of the parts of a batch add up to the mean of the batch.

    Attributes:
        total: sum of the terms, a number or a scalar tensor.
        count: number of terms, such as response tokens.
    """

    total: Tensor | float
    count: Tensor | float

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        """The mean itself. Equal terms have exactly that mean: the division comes last, in float64."""
        return float(self.total) / float(self.count)


Means = dict[str, Mean]


def add_means(parts: Iterable[Mapping[str, Mean]]) -> Means:
    """Add up, by name, the means of the parts of a batch; every part has the same names."""
    sums: Means = {}
    for part in parts:
        sums = {name: sums[name] + mean if name in sums else mean for name, mean in part.items()}
    return sums


def mean_with_interval(name: str, values: Sequence[float], seed: int = 0) -> dict[str, float]:
    """Mean, its 95 % percentile bootstrap interval (Efron 1979), and the number of values.

    They are called `name`, `name_low`, `name_high` and `name_n`.

    Args:
        values: one per prompt. Scores of one prompt are not independent, so callers average them first.
    """
    array = np.asarray(values, dtype=np.float64)
    low, high = np.percentile(resampled_means(array, np.random.default_rng(seed)), [2.5, 97.5])
    interval = {f"{name}_low": float(low), f"{name}_high": float(high)}
    return {name: float(array.mean()), **interval, f"{name}_n": len(array)}


def resampled_means(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Means of draws of (n,) values with replacement, (RESAMPLES,). They do not depend on AT_ONCE."""
    rows = max(1, AT_ONCE // len(values))
    sizes = [(min(rows, RESAMPLES - first), len(values)) for first in range(0, RESAMPLES, rows)]
    return np.concatenate([values[random.integers(len(values), size=size)].mean(axis=1) for size in sizes])


def means_by(keys: Sequence[Hashable], values: Sequence[float]) -> list[float]:
    """The mean of the values of each key, in the order in which keys appear."""
    groups: dict[Hashable, list[float]] = {}
    for key, value in zip(keys, values, strict=True):
        groups.setdefault(key, []).append(value)
    return [sum(of_key) / len(of_key) for of_key in groups.values()]


Figure = dict[str, float]  # value, low, high, n
ENDS = {"value": "", "low": "_low", "high": "_high", "n": "_n"}  # how metrics name them


def figure(values: Sequence[float]) -> Figure:
    """Mean, 95 % interval and number of values, as `mean_with_interval` has them."""
    return figure_of(mean_with_interval("", values), "")


def has_interval(known: Mapping[str, float]) -> bool:
    """Whether the ends of a figure mean anything: over few values, or equal ones, they are too close."""
    return known["n"] >= LEAST and known["low"] < known["high"]


def figure_of(metrics: Mapping[str, float], name: str) -> Figure:
    """The mean called `name` among metrics, with its interval."""
    return {part: metrics[f"{name}{end}"] for part, end in ENDS.items()}


@dataclass
class RunningMoments:
    """Mean and variance of all values so far, by the parallel update of Chan et al. 1979."""

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
        """Standard deviation of all values so far; 1 before the first."""
        return math.sqrt(self.square / self.count) if self.count else 1.0


def wins(scores: Sequence[float], others: Sequence[float]) -> list[float]:
    """1 if the score is higher than the other, 0 if it is lower, 1/2 if they tie."""
    return [0.5 + 0.5 * ((a > b) - (a < b)) for a, b in zip(scores, others, strict=True)]


def expected_best(scores: Sequence[float], values: Sequence[float], k: int) -> float:
    """Expected value of the best-scored of k answers, over all choices of k (Nakano et al. 2021).

    Args:
        scores: what the best answer is chosen by.
        values: what the chosen answer is worth.
    """
    order = sorted(range(len(scores)), key=lambda i: scores[i])
    ways = (math.comb(below, k - 1) * values[i] for below, i in enumerate(order))
    return sum(ways) / math.comb(len(scores), k)


def kl_of_best(n: int) -> float:
    """KL of best-of-n to the sampled policy in nats: log n - (n - 1)/n (Stiennon et al. 2020, appendix G).

    Exact if no two answers tie; else an upper bound (Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n


def repeated_bigrams(text: str) -> float:
    """Share of a text's word bigrams that repeat an earlier one, in [0, 1)."""
    words = text.lower().split()
    bigrams = list(pairwise(words))
    return 1 - len(set(bigrams)) / len(bigrams) if bigrams else 0.0
