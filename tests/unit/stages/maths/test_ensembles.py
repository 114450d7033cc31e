"""Combination of several reward models, by hand."""

from __future__ import annotations

import pytest
import torch

from stages.maths.ensembles import combined, deviation, standardized

SCORES = torch.tensor([[1.0, 4.0], [3.0, 4.0]])  # two members, two answers


def test_each_way_to_combine():
    assert combined(SCORES, "mean").tolist() == [2.0, 4.0]
    assert combined(SCORES, "min").tolist() == [1.0, 4.0]
    assert combined(SCORES, "mean_minus_deviation", 0.5).tolist() == [1.5, 4.0]
    assert combined(SCORES, "mean_minus_deviation", 0.0).tolist() == [2.0, 4.0]


def test_one_member_has_its_own_score_to_the_bit():
    alone = torch.randn(1, 50)
    for how in ("mean", "min", "mean_minus_deviation"):
        assert torch.equal(combined(alone, how, 3.0), alone[0])
    assert not deviation(alone).any()


def test_caution_never_raises_a_score():
    scores = torch.randn(5, 100)
    mean = combined(scores, "mean")
    assert (combined(scores, "min") <= mean).all()
    assert (combined(scores, "mean_minus_deviation", 1.0) <= mean).all()


def test_scales_and_offsets_are_no_disagreement():
    truth = torch.tensor([0.0, 1.0, 5.0])
    scores = torch.stack([truth, 10 * truth - 3, torch.ones(3)])
    found = standardized(scores)
    torch.testing.assert_close(found[0], found[1])
    assert found[2].tolist() == [0.0, 0.0, 0.0], "equal scores have no deviation to divide by"
    assert found[0].mean() == pytest.approx(0, abs=1e-6)
    assert found[0].std(correction=0) == pytest.approx(1)
    torch.testing.assert_close(deviation(found[:2]), torch.zeros(3), atol=1e-6, rtol=0)
