"""Bradley-Terry scores: against choix, the closed form of two answers, and the order of wins."""

from __future__ import annotations

import math
from itertools import permutations

import choix
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.maths.bradley_terry import bradley_terry
from stages.maths.orders import ranks_of

COUNTS = st.integers(2, 6).flatmap(
    lambda k: st.lists(st.lists(st.integers(0, 9), min_size=k, max_size=k), min_size=k, max_size=k)
)
RANKINGS = st.integers(2, 6).flatmap(
    lambda k: st.lists(st.lists(st.integers(0, k - 1), min_size=k, max_size=k), min_size=1, max_size=5)
)


@given(COUNTS, st.sampled_from([0.05, 0.5, 2.0]))
def test_the_scores_are_those_of_choix(counts: list[list[int]], prior: float) -> None:
    """choix minimises the same sum by scipy; a win stands there as often as it happened."""
    wins = np.array(counts, float)
    np.fill_diagonal(wins, 0)
    pairs = [(i, j) for i, j in permutations(range(len(wins)), 2) for _ in range(int(wins[i, j]))]
    expected = choix.opt_pairwise(len(wins), pairs, alpha=prior, tol=1e-10)
    assert bradley_terry(wins, prior) == pytest.approx(expected - expected.mean(), abs=1e-4)


def test_two_answers_with_hardly_a_prior() -> None:
    """P = 3/4 is sigmoid(log 3)."""
    first, second = bradley_terry(np.array([[0.0, 3.0], [1.0, 0.0]]), prior=1e-9)
    assert first - second == pytest.approx(math.log(3)) and first + second == pytest.approx(0)


def test_an_answer_that_always_wins_has_a_finite_score() -> None:
    scores = bradley_terry(np.triu(np.full((4, 4), 1000.0), 1))
    assert np.isfinite(scores).all() and (np.diff(scores) < 0).all()


def test_nothing_compared_is_all_equal() -> None:
    assert bradley_terry(np.zeros((3, 3))).tolist() == [0, 0, 0]


@given(RANKINGS)
def test_of_whole_rankings_the_order_is_that_of_wins(rankings: list[list[int]]) -> None:
    """Equal wins give equal scores, so a tie is exactly an equal number of wins, a tie counting one half."""
    of = np.array(rankings)
    wins = ((of[:, :, None] < of[:, None, :]) + 0.5 * (of[:, :, None] == of[:, None, :])).sum(0)
    np.fill_diagonal(wins, 0)
    scores = bradley_terry(wins)
    assert ranks_of(np.round(scores, 6).tolist()) == ranks_of(wins.sum(1).tolist())


@given(COUNTS)
def test_names_of_answers_do_not_matter(counts: list[list[int]]) -> None:
    wins = np.array(counts, float)
    order = np.random.default_rng(0).permutation(len(wins))
    permuted = bradley_terry(wins[np.ix_(order, order)])
    assert permuted == pytest.approx(bradley_terry(wins)[order], abs=1e-8)
