"""Figures for people: three significant digits, and the same decimals for a figure and its interval."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.terminal.format import show_figure, show_number


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        (0.0855, 0.008, 0.16, ("0.0855", "0.0080", "0.1600")),
        (0.61, 0.54, 0.68, ("0.610", "0.540", "0.680")),
        (14.2, 13.6, 14.8, ("14.2", "13.6", "14.8")),
        (120.4, 99.6, 141, ("120", "100", "141")),
        (1.0, 0.95, 1.0, ("1.00", "0.95", "1.00")),
        (0.0, -0.15, 0.15, ("0.00", "-0.15", "0.15")),
        (0.00041, -0.15, 0.15, ("0.0004", "-0.1500", "0.1500")),
        (-0.2, -0.3, -0.1, ("-0.200", "-0.300", "-0.100")),
        (1e-5, 1e-6, 1e-4, ("1.00e-05", "1.00e-06", "1.00e-04")),
        (0.5, math.nan, 0.6, ("0.500", "nan", "0.600")),
        (0.0, 0.0, 0.0, ("0.00", "0.00", "0.00")),
    ],
)
def test_a_figure_and_its_interval_have_the_same_decimals(value, low, high, shown):
    assert show_figure({"gold": value, "gold_low": low, "gold_high": high}, "gold") == shown


def test_a_figure_without_an_interval_stands_alone():
    assert show_figure({"steps": 36.0}, "steps") == ("36", "", "")


@given(st.floats(min_value=1e-3, max_value=99_999))
def test_three_digits_are_right(value):
    assert float(show_number(value)) == pytest.approx(value, rel=0.00501)
