"""Scores of K answers from who preferred which, by the model of Bradley and Terry (1952)."""

from __future__ import annotations

import numpy as np

PRIOR = 0.5  # 1 / (2 s^2) of a normal prior with deviation s = 1 on each score
MOST_STEPS = 100
SMALLEST = 1e-12  # of a step
NEAR = 1e-4  # of a step, below which Newton's method needs no shorter ones, and rounding would ask for them


def bradley_terry(wins: np.ndarray, prior: float = PRIOR) -> np.ndarray:
    """The most probable scores s, with P(i beats j) = sigmoid(s_i - s_j); their mean is 0.

    Maximises sum_ij wins_ij log sigmoid(s_i - s_j) - prior * sum_i s_i^2 by Newton's method. Without the
    prior, the score of an answer that always wins would be infinite.

    If every pair was compared equally often, the order of the scores is the order of wins: answers with
    equally many wins have equal scores.

    Args:
        wins: (K, K) how often i was preferred to j; a tie is one half for each.
        prior: above 0.

    Returns:
        (K,) scores in nats.
    """
    scores = np.zeros(len(wins))
    value = _objective(scores, wins, prior)
    for _ in range(MOST_STEPS):
        lost = 1 / (1 + np.exp(scores[:, None] - scores[None, :]))  # P(i loses to j)
        expected = wins * lost
        gradient = expected.sum(1) - expected.sum(0) - 2 * prior * scores
        weight = (wins + wins.T) * lost * lost.T
        hessian = np.diag(weight.sum(1) + 2 * prior) - weight
        step = np.linalg.solve(hessian, gradient)
        while (new := _objective(scores + step, wins, prior)) < value and np.abs(step).max() > NEAR:
            step /= 2
        scores, value = scores + step, new
        if np.abs(step).max() <= SMALLEST:
            break
    centred: np.ndarray = scores - scores.mean()
    return centred


def _objective(scores: np.ndarray, wins: np.ndarray, prior: float) -> float:
    differences = scores[:, None] - scores[None, :]
    return float(-(wins * np.logaddexp(0, -differences)).sum() - prior * (scores**2).sum())
