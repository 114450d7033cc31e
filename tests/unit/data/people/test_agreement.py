"""Agreement of two rankings, against definitions that others have written down."""

from __future__ import annotations

from itertools import product

import pytest
from scipy.stats import kendalltau

from data.people.agreement import near, ordered_agreement, pairwise_agreement


@pytest.mark.parametrize(
    ("ours", "theirs", "agreement"),
    [
        ((0, 1), (0, 1), 1.0),
        ((0, 1), (1, 0), 0.0),
        ((0, 1), (0, 0), 0.5),
        ((0, 0), (0, 0), 1.0),
        ((0, 1, 2), (0, 2, 1), 2 / 3),
        ((0, 1, 1), (0, 1, 2), 2.5 / 3),
    ],
)
def test_pairwise_agreement_of_small_rankings(ours, theirs, agreement):
    assert pairwise_agreement(ours, theirs) == pytest.approx(agreement)


def test_without_ties_it_is_kendalls_tau_on_another_scale():
    """τ = 2 · agreement - 1, for every two rankings of four answers without ties."""
    rankings = [ranks for ranks in product(range(4), repeat=4) if len(set(ranks)) == 4]
    for theirs in rankings:
        tau = kendalltau(rankings[0], theirs).statistic
        assert 2 * pairwise_agreement(rankings[0], theirs) - 1 == pytest.approx(tau)


def test_ratings_agree_within_one_point():
    assert [near((4,), (other,)) for other in range(2, 7)] == [0, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("ours", "theirs", "agreement"),
    [
        ((0, 1), (0, 1), 1.0),
        ((0, 1), (0, 0), None),
        ((0, 0), (0, 0), None),
        ((0, 1, 2), (0, 2, 1), 2 / 3),
        ((0, 1, 1), (0, 1, 2), 1.0),  # the pair that one ties does not count, as in a model's accuracy
        ((0, 1, 1), (1, 0, 2), 0.5),
    ],
)
def test_agreement_on_what_both_order(ours, theirs, agreement):
    assert ordered_agreement(ours, theirs) == (None if agreement is None else pytest.approx(agreement))
