"""What published benchmarks make of the figures: the best of n, and RewardBench's sections.

RewardBench: Lambert et al. 2024; RewardBench 2: Malik et al. 2025.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from stages.maths.preferences import ScoredRanking
from stages.maths.statistics import RESAMPLES, Figure, wins

MATH = "math-prm"
CODE = ("hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust")
SECTIONS: dict[str, tuple[str, ...]] = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        *("mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor"),
        *("llmbar-adver-GPTInst", "llmbar-adver-GPTOut", "llmbar-adver-manual"),
    ),
    "Safety": (
        *("refusals-dangerous", "refusals-offensive"),
        *("xstest-should-refuse", "xstest-should-respond", "donotanswer"),
    ),
    "Reasoning": (MATH, *CODE),
}


def in_order(ranking: ScoredRanking) -> float:
    """The share of a ranking's pairs that the model orders as the labels do; a tie is a half."""
    better, worse = zip(*ranking.pairs, strict=True)
    rewards = ranking.rewards
    return float(np.mean(wins([rewards[i] for i in better], [rewards[j] for j in worse])))


def picks_best(ranking: ScoredRanking) -> float:
    """1 if the answer with the highest reward is one of the best by the labels, else 0.

    If several have it, the share of them that are.
    """
    top = max(ranking.rewards)
    chosen = [rank for rank, reward in zip(ranking.ranks, ranking.rewards, strict=True) if reward == top]
    return sum(rank == 0 for rank in chosen) / len(chosen)


def separates(ranking: ScoredRanking) -> float:
    """1 if each of the best answers has a higher reward than every other one, else 0."""
    pairs = list(zip(ranking.ranks, ranking.rewards, strict=True))
    best = min(reward for rank, reward in pairs if rank == 0)
    return float(best > max(reward for rank, reward in pairs if rank > 0))


def is_reward_bench(subsets: Sequence[str]) -> bool:
    """Whether all subsets are RewardBench's."""
    known = {name for names in SECTIONS.values() for name in names}
    return bool(subsets) and set(subsets) <= known


def section_means(values: Mapping[str, Sequence[float]]) -> dict[str, Figure]:
    """RewardBench's score of each section that is there, and their mean as `all sections`.

    Each row of a section counts alike, but for mathematics, which counts as much as all code together.

    Args:
        values: of each subset, 1 for each row in order, else 0.
    """
    found: dict[str, Figure] = {}
    draws = []
    random = np.random.default_rng(0)
    for section, names in SECTIONS.items():
        present = {name: np.asarray(values[name]) for name in names if name in values}
        if not present:
            continue
        code = sum(len(present[name]) for name in CODE if name in present)
        weights = np.array([code if name == MATH and code else len(of) for name, of in present.items()])
        drawn = np.stack([_resampled(random, of) for of in present.values()])
        draws.append(weights @ drawn / weights.sum())
        mean = float(weights @ [of.mean() for of in present.values()] / weights.sum())
        found[section] = _figure(mean, draws[-1], sum(map(len, present.values())))
    mean = float(np.mean([one["value"] for one in found.values()]))
    rows = sum(one["n"] for one in found.values())
    return found | {"all sections": _figure(mean, np.mean(draws, axis=0), rows)}


def _resampled(random: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """Means of draws of a subset's rows with replacement, (RESAMPLES,)."""
    return values[random.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)


def _figure(value: float, draws: np.ndarray, n: float) -> Figure:
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high), "n": n}
