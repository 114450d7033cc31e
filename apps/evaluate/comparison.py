"""The win rate at equal length, and the variety of texts. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression

REFITS = 300  # of the bootstrap
STRENGTH = 10.0  # inverse of the L2 penalty: enough to bound the fit if one policy always wins


def length_controlled_win_rate(
    won: Sequence[float], lengths: Sequence[int], other_lengths: Sequence[int]
) -> dict[str, float]:
    """`lc_win_rate`: the win rate if both answers had the same length, with its 95 % bootstrap interval.

    The model of AlpacaEval 2 (Dubois et al. 2024, equation 2) without its term for the instruction, which
    needs many models: P(win) = sigmoid(theta + phi * tanh(d / std(d))), d the difference of lengths. The rate
    is sigmoid(theta).

    Args:
        won: for each prompt 1, 0, or 1/2 for a tie.
        lengths, other_lengths: tokens of both answers.
    """
    outcomes = np.asarray(won, float)
    difference = np.asarray(lengths, float) - np.asarray(other_lengths, float)
    feature = np.tanh(difference / (float(difference.std()) or 1.0))
    picks = np.random.default_rng(0).integers(len(outcomes), size=(REFITS, len(outcomes)))
    rates = [_rate_at_equal_length(outcomes[pick], feature[pick]) for pick in picks]
    low, high = np.percentile(rates, [2.5, 97.5])
    interval = {"lc_win_rate_low": float(low), "lc_win_rate_high": float(high)}
    rate = _rate_at_equal_length(outcomes, feature)
    return {"lc_win_rate": rate, **interval, "lc_win_rate_n": len(outcomes)}


def _rate_at_equal_length(won: np.ndarray, feature: np.ndarray) -> float:
    """sigmoid(theta) of the logistic fit. A tie counts as half a win and half a loss."""
    if len(set(won.tolist())) == 1:
        return float(won[0])  # nothing to fit
    outcomes = np.concatenate([np.ones_like(won), np.zeros_like(won)])
    weights = np.concatenate([won, 1 - won])
    features = np.concatenate([feature, feature])[:, None]
    fit = LogisticRegression(C=STRENGTH).fit(features, outcomes, sample_weight=weights)
    return float(fit.predict_proba([[0.0]])[0, 1])


def distinct(texts: Sequence[str], n: int) -> float:
    """distinct-n: different word n-grams over all n-grams of all texts (Li et al. 2016), in [0, 1]."""
    grams = [
        gram
        for text in texts
        for words in [text.lower().split()]
        for gram in zip(*(words[i:] for i in range(n)), strict=False)
    ]
    return len(set(grams)) / len(grams) if grams else 0.0
