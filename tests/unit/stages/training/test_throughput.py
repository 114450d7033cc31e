"""Intervals that hold what they promise, a clock and a memory gauge that agree with other ones."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stages.maths.statistics import mean_with_interval
from stages.training.throughput import Meter, peak_memory_bytes


def test_interval_of_equal_values_is_a_point():
    assert mean_with_interval("x", [2.5, 2.5, 2.5]) == {"x": 2.5, "x_low": 2.5, "x_high": 2.5}


def test_interval_of_two_values_by_hand():
    # resampled means are 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4: both ends hold more than 2.5 %
    assert mean_with_interval("x", [0, 1]) == {"x": 0.5, "x_low": 0.0, "x_high": 1.0}


def test_interval_of_a_rare_success_by_hand():
    # of 10 values one is 1: a resampled mean is k/10 with k binomial(10, 0.1), P(k = 0) = 0.349,
    # P(k <= 2) = 0.930, P(k <= 3) = 0.987: the 97.5th percentile is 3/10
    assert mean_with_interval("x", [1] + [0] * 9) == {"x": 0.1, "x_low": 0.0, "x_high": 0.3}


def test_interval_is_a_function_of_values_and_seed():
    values = np.random.default_rng(0).normal(size=20).tolist()
    assert mean_with_interval("x", values) == mean_with_interval("x", values)
    assert mean_with_interval("x", values, seed=1) != mean_with_interval("x", values)


@pytest.mark.parametrize(
    ("draw", "truth"),
    [(lambda rng: rng.normal(3, 2, 50), 3.0), (lambda rng: rng.random(50) < 0.7, 0.7)],
    ids=["normal", "binary"],
)
def test_interval_covers_the_true_mean_19_times_in_20(draw, truth):
    rng = np.random.default_rng(0)
    intervals = [mean_with_interval("x", draw(rng).astype(float), seed=trial) for trial in range(400)]
    covered = sum(each["x_low"] <= truth <= each["x_high"] for each in intervals)
    # 95 % of 400 is 380; three binomial standard deviations are 13, and the bootstrap is a little narrow
    assert 360 <= covered <= 393
    assert all(each["x_low"] < each["x"] < each["x_high"] for each in intervals)


def test_interval_has_the_width_of_the_normal_one():
    values = np.random.default_rng(1).normal(0, 5, 1000)
    found = mean_with_interval("x", values.tolist())
    half = 1.96 * values.std() / 1000**0.5
    assert found["x"] == pytest.approx(values.mean())
    assert found["x_low"] == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found["x_high"] == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_meter_divides_tokens_by_seconds(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    meter = Meter()
    assert meter.tokens_per_second == 0.0
    meter.add(30)
    meter.add(12)
    now = 104.0
    assert meter.tokens == 42
    assert meter.tokens_per_second == 10.5


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_peak_memory_is_what_the_kernel_says(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    peak = peak_memory_bytes()
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    ]
    assert peak == pytest.approx(int(line.split()[1]) * 1024, rel=0.02)
