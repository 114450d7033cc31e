"""Calibration of a preference model, against libraries and against models whose calibration is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from stages.maths.calibration import (
    best_temperature,
    brier_scores,
    error_of_calibrated,
    expected_calibration_error,
    probability,
    reliability,
)

RANDOM = np.random.default_rng(3)
ONE = np.ones(4000)
TRUE_MARGINS = RANDOM.normal(0, 1.5, 4000)  # of the first answer over the second


def pairs(sharpness: float) -> np.ndarray:
    """Margins of a model that is `sharpness` times as sure as it should be, the better answer first."""
    first_wins = RANDOM.random(4000) < probability(TRUE_MARGINS)
    return np.where(first_wins, TRUE_MARGINS, -TRUE_MARGINS) * sharpness


def test_the_temperature_undoes_too_much_confidence():
    for sharpness in (0.5, 1.0, 3.0):
        assert best_temperature(pairs(sharpness), ONE) == pytest.approx(sharpness, rel=0.08)


def test_the_temperature_is_the_minimum_of_the_loss():
    margins, weights = pairs(2.0)[:300], RANDOM.random(300)
    loss = lambda t: np.average(np.log1p(np.exp(-margins / t)), weights=weights)  # noqa: E731
    found = minimize_scalar(loss, bounds=(0.1, 10), method="bounded", options={"xatol": 1e-9})
    assert best_temperature(margins, weights) == pytest.approx(found.x, rel=1e-4)


def test_no_temperature_mends_chance_or_perfection():
    assert best_temperature(np.array([1.0, -1.0]), np.ones(2)) is None
    assert best_temperature(np.array([-1.0, -2.0]), np.ones(2)) is None
    assert best_temperature(np.array([0.5, 2.0]), np.ones(2)) is None


def test_the_curve_and_the_brier_score_are_those_of_scikit_learn():
    margins = pairs(1.7)
    bins = reliability(margins, ONE)
    accuracy, confidence = calibration_curve(margins > 0, probability(np.abs(margins)), n_bins=20)
    assert [one.accuracy for one in bins] == pytest.approx(accuracy.tolist())
    assert [one.confidence for one in bins] == pytest.approx(confidence.tolist())
    assert sum(one.weight for one in bins) == pytest.approx(1)
    labels = np.r_[ONE, 0 * ONE]
    both = probability(np.r_[margins, -margins])
    assert brier_scores(margins).mean() == pytest.approx(brier_score_loss(labels, both))


def test_a_calibrated_model_stays_below_the_bound_and_an_overconfident_one_does_not():
    prompts = np.arange(4000)
    for sharpness, calibrated in ((1.0, True), (3.0, False)):
        margins = pairs(sharpness)
        error = expected_calibration_error(reliability(margins, ONE))
        assert (error <= error_of_calibrated(margins, ONE, prompts)) is calibrated


def test_pairs_of_a_prompt_count_as_one_prompt():
    """Ten copies of each pair change nothing if each weighs a tenth. They do not look like more pairs."""
    margins = pairs(1.0)[:200]
    many, weights = np.repeat(margins, 10), np.full(2000, 0.1)
    prompts = np.arange(200)
    alone = error_of_calibrated(margins, np.ones(200), prompts)
    assert error_of_calibrated(many, weights, np.repeat(prompts, 10)) == pytest.approx(alone)


def test_equal_scores_are_half_right():
    (only,) = reliability(np.zeros(3), np.ones(3))
    assert (only.confidence, only.accuracy) == (0.5, 0.5)
    assert brier_scores(np.zeros(3)).tolist() == [0.25] * 3
