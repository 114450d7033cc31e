"""The win rate at equal length, against scipy and against cases whose answer is known; variety of texts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from apps.evaluate.comparison import STRENGTH, distinct, length_controlled_win_rate
from apps.evaluate.figures import order_notes


def simulated(theta: float, phi: float, n: int = 400) -> tuple[list[float], list[int], list[int]]:
    random = np.random.default_rng(3)
    ours, theirs = random.integers(5, 60, n), random.integers(5, 60, n)
    difference = (ours - theirs).astype(float)
    chance = expit(theta + phi * np.tanh(difference / difference.std()))
    return (random.random(n) < chance).astype(float).tolist(), ours.tolist(), theirs.tolist()


def test_the_rate_is_that_of_an_independent_fit() -> None:
    won, ours, theirs = simulated(theta=0.4, phi=1.5)
    difference = np.subtract(ours, theirs).astype(float)
    feature = np.tanh(difference / difference.std())

    def loss(parameters: np.ndarray) -> float:
        theta, phi = parameters
        logits = theta + phi * feature
        chance = np.where(np.asarray(won) == 1, expit(logits), expit(-logits))
        return float(-np.log(chance).sum() + phi**2 / (2 * STRENGTH))

    theta, _ = minimize(loss, [0.0, 0.0]).x
    assert length_controlled_win_rate(won, ours, theirs)["lc_win_rate"] == pytest.approx(
        expit(theta), abs=1e-3
    )


def test_a_judge_of_length_alone_has_no_winner_at_equal_length() -> None:
    """The longer answer wins nine times in ten, and ours is the longer one on three prompts of four."""
    ours, theirs = [30] * 60 + [10] * 20, [10] * 60 + [30] * 20
    won = [1.0] * 54 + [0.0] * 6 + [1.0] * 2 + [0.0] * 18
    rates = length_controlled_win_rate(won, ours, theirs)
    assert sum(won) / len(won) == 0.7
    assert rates["lc_win_rate"] == pytest.approx(0.5, abs=0.05)
    assert rates["lc_win_rate_low"] <= rates["lc_win_rate"] <= rates["lc_win_rate_high"]


def test_equal_lengths_leave_the_raw_rate() -> None:
    won = [1.0] * 30 + [0.5] * 10 + [0.0] * 10
    rates = length_controlled_win_rate(won, [7] * 50, [7] * 50)
    assert rates["lc_win_rate"] == pytest.approx(0.7, abs=1e-3)
    assert rates["lc_win_rate_n"] == 50


@pytest.mark.parametrize("outcome", [0.0, 0.5, 1.0])
def test_one_outcome_everywhere_is_the_rate(outcome: float) -> None:
    assert length_controlled_win_rate([outcome] * 8, range(8), [3] * 8)["lc_win_rate"] == outcome


def test_distinct_by_hand() -> None:
    assert distinct(["the cat sat", "the cat ran"], 1) == 4 / 6
    assert distinct(["the cat sat", "the cat ran"], 2) == 3 / 4
    assert distinct(["one"], 2) == 0.0


def test_orders_of_the_same_demonstrations_have_mean_least_and_most() -> None:
    judges: list[Any] = [SimpleNamespace(name="gold"), SimpleNamespace(name="endpoint")]
    scores = {"base": -2.0, "base+4": 0.1, "base+4-order2": 0.4, "base+4-order3": -0.2, "base+1-order2": 7.0}
    metrics = {name: {"gold": score} for name, score in scores.items()}
    assert order_notes(metrics, judges) == [
        "3 orders of the demonstrations of base+4, by gold: mean 0.100, least -0.200, most 0.400."
    ]
