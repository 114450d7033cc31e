"""Means add up, intervals cover the true mean, and running moments are those of all values."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from stages.maths import statistics
from stages.maths.losses import masked_mean
from stages.maths.statistics import (
    RESAMPLES,
    Mean,
    RunningMoments,
    add_means,
    mean_with_interval,
    resampled_means,
)


def test_means_of_parts_add_up_to_the_mean_of_all_by_hand():
    parts = [{"x": Mean(6.0, 3)}, {"x": Mean(torch.tensor(4.0), torch.tensor(1))}]
    total = add_means(parts)["x"]
    assert (float(total.total), float(total.count)) == (10.0, 4.0)
    assert total.value == 2.5  # not 3, the mean of the parts' means


@pytest.mark.parametrize("size", [1, 3, 7])
def test_parts_of_any_size_have_the_mean_of_the_whole(size):
    values = torch.randn(21, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.rand(21, 4, generator=torch.Generator().manual_seed(1)) < 0.6
    parts = [{"x": masked_mean(*part)} for part in zip(values.split(size), mask.split(size), strict=True)]
    assert add_means(parts)["x"].value == pytest.approx(values[mask].mean().item(), rel=1e-12)


def test_ones_have_a_mean_of_exactly_one():
    assert masked_mean(torch.ones(7, 3), torch.ones(7, 3, dtype=torch.bool)).value == 1.0


def test_a_mean_carries_no_gradient_and_nothing_from_outside_the_mask():
    values = torch.tensor([[1.0, torch.nan]], requires_grad=True)
    mean = masked_mean(values, torch.tensor([[True, False]]))
    assert mean.value == 1.0 and not torch.as_tensor(mean.total).requires_grad


def test_interval_of_equal_values_is_a_point():
    assert mean_with_interval("x", [2.5, 2.5, 2.5]) == {"x": 2.5, "x_low": 2.5, "x_high": 2.5, "x_n": 3}


def test_interval_of_two_values_by_hand():
    # resampled means are 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4: both ends hold more than 2.5 %
    assert mean_with_interval("x", [0, 1]) == {"x": 0.5, "x_low": 0.0, "x_high": 1.0, "x_n": 2}


def test_interval_of_a_rare_success_by_hand():
    # of 10 values one is 1: a resampled mean is k/10 with k binomial(10, 0.1), P(k = 0) = 0.349,
    # P(k <= 2) = 0.930, P(k <= 3) = 0.987: the 97.5th percentile is 3/10
    assert mean_with_interval("x", [1] + [0] * 9) == {"x": 0.1, "x_low": 0.0, "x_high": 0.3, "x_n": 10}


def test_interval_is_a_function_of_values_and_seed():
    values = np.random.default_rng(0).normal(size=20).tolist()
    assert mean_with_interval("x", values) == mean_with_interval("x", values)
    assert mean_with_interval("x", values, seed=1) != mean_with_interval("x", values)


@pytest.mark.parametrize(
    ("draw", "mean"),
    [(lambda rng: rng.normal(3, 2, 50), 3.0), (lambda rng: rng.random(50) < 0.7, 0.7)],
    ids=["normal", "binary"],
)
def test_interval_covers_the_true_mean_19_times_in_20(draw, mean):
    rng = np.random.default_rng(0)
    intervals = [mean_with_interval("x", draw(rng).astype(float), seed=trial) for trial in range(400)]
    covered = sum(interval["x_low"] <= mean <= interval["x_high"] for interval in intervals)
    # 95 % of 400 is 380; three binomial standard deviations are 13, and the bootstrap is a little narrow
    assert 360 <= covered <= 393
    assert all(interval["x_low"] < interval["x"] < interval["x_high"] for interval in intervals)


@pytest.mark.parametrize("at_once", [1, 10, 2**22])
@pytest.mark.parametrize("n", [1, 3, 3000])
def test_draws_in_blocks_are_those_of_one_block(n, at_once, monkeypatch):
    monkeypatch.setattr(statistics, "AT_ONCE", at_once)
    values = np.random.default_rng(1).normal(size=n)
    picks = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    means = resampled_means(values, np.random.default_rng(0))
    assert np.array_equal(means, values[picks].mean(axis=1))


def test_an_interval_of_many_values_takes_little_memory():
    values = np.random.default_rng(0).random(30_000).tolist()
    tracemalloc.start()
    try:
        mean_with_interval("x", values)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200 * 2**20  # one block would take 960 MB


def test_interval_has_the_width_of_the_normal_one():
    values = np.random.default_rng(1).normal(0, 5, 1000)
    interval = mean_with_interval("x", values.tolist())
    half_width = 1.96 * values.std() / 1000**0.5
    assert interval["x"] == pytest.approx(values.mean())
    assert interval["x_low"] == pytest.approx(values.mean() - half_width, abs=0.1 * half_width)
    assert interval["x_high"] == pytest.approx(values.mean() + half_width, abs=0.1 * half_width)


def test_running_moments_are_those_of_all_values() -> None:
    values = torch.randn(60, dtype=torch.float64) * 3 + 7
    moments = RunningMoments()
    for batch in values.split([10, 1, 29, 20]):
        moments.update(batch)
    assert moments.mean == pytest.approx(values.mean().item())
    assert moments.deviation == pytest.approx(values.std(unbiased=False).item())
