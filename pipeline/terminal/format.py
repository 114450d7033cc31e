"""Format numbers, durations and metrics for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

SMALL, LARGE = 1e-3, 1e5  # other numbers have exponents

# The metrics beside a progress bar, in this order, and their short names.
SHOWN = {
    "loss": "loss",
    "accuracy": "accuracy",
    "margin": "margin",
    "objective/scores": "score",
    "objective/kl": "KL",
    "objective/entropy": "entropy",
    "completions/mean_length": "length",
    "tokens_per_second": "tok/s",
}


def show_seconds(seconds: float) -> str:
    """`7 s`, `3:07`, `1:03:07`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes = f"{rest // 60:02d}" if hours else f"{rest // 60}"
    return (f"{hours}:" if hours else "") + f"{minutes}:{rest % 60:02d}"


def show_number(value: float) -> str:
    """Three significant digits: `0.693`, `12.3`, `0.0855`, `1.00e-05`. Whole numbers stay whole: `1234`."""
    value = float(value)
    if value and not SMALL <= abs(value) < LARGE:  # NaN and infinity, too
        return f"{value:.2e}"
    return f"{value:.0f}" if value.is_integer() else f"{value:.{_decimals(value)}f}"


class Figure(NamedTuple):
    """A metric in text, and the bounds of its interval; "" without one."""

    value: str
    low: str = ""
    high: str = ""

    @property
    def bounds(self) -> str:
        """`0.700 to 0.780`; "" without an interval."""
        return f"{self.low} to {self.high}" if self.low else ""

    def __str__(self) -> str:
        """`0.740 [0.700, 0.780]`; the value alone without an interval."""
        return f"{self.value} [{self.low}, {self.high}]" if self.low else self.value


def show_known(known: Mapping[str, float]) -> Figure:
    """A figure's `value`, `low` and `high` with the same decimals: three significant digits of the value.

    0.0855 in [0.008, 0.16] is 0.0855 [0.0080, 0.1600]. A value near 0 gets at most one decimal more than the
    larger bound needs: 0.00041 in [-0.15, 0.15] is 0.0004 [-0.1500, 0.1500].
    """
    numbers = [float(known[part]) for part in ("value", "low", "high")]
    largest = max(map(abs, numbers))
    if largest and not (math.isfinite(sum(numbers)) and SMALL <= largest < LARGE):
        return Figure(*map(show_number, numbers))
    decimals = min(_decimals(numbers[0]), _decimals(largest) + 1)
    return Figure(*(f"{number:.{decimals}f}" for number in numbers))


def show_figure(metrics: Mapping[str, float], key: str) -> Figure:
    """A metric and, if there is one, its interval; see `show_known`."""
    if f"{key}_low" not in metrics or f"{key}_high" not in metrics:
        return Figure(show_number(metrics[key]))
    return show_known({"value": metrics[key], "low": metrics[f"{key}_low"], "high": metrics[f"{key}_high"]})


def _decimals(value: float) -> int:
    """The decimals with which `value` has three significant digits; 0 from 100 on."""
    exponent = int(f"{abs(value):.2e}".partition("e")[2])  # after rounding: 9.996 is 10.0
    return max(0, 2 - exponent)


def show_metrics(metrics: Mapping[str, float]) -> str:
    """The metrics of SHOWN by short names, or all metrics if none is in SHOWN."""
    shown = {short: metrics[name] for name, short in SHOWN.items() if name in metrics} or metrics
    return "  ".join(f"{name} {show_number(value)}" for name, value in shown.items())
