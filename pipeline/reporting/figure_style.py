"""One look for all figures of a report: colours and shapes by role, panels, points with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart; shapes differ as well.
COLOURS = {"base": "#767676", "sft": "#0072B2", "rm": "#CC79A7", "ppo": "#D55E00", "best": "#009E73"}
MARKERS = {"base": "s", "sft": "o", "ppo": "D"}
ROLE_NAMES = {"base": "base", "sft": "SFT", "ppo": "PPO"}
INK, PALE, FAINT = "#222222", "#8c8c8c", "#cfcfcf"
LOOK: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.edgecolor": "#9a9a9a",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.constrained_layout.h_pad": 0.09,
    "figure.constrained_layout.w_pad": 0.12,
}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches; unlike pyplot's it needs no display and no closing."""
    return Figure(figsize=(width, height), layout="constrained")


def grid(figure: Figure, rows: int, count: int) -> list[Axes]:
    """`count` panels, two to a row; one alone takes the row."""
    return [figure.add_subplot(rows, min(2, count), place + 1) for place in range(count)]


def interval(figures: Mapping[str, float], key: str) -> tuple[float, float] | None:
    """Both ends of the interval of `key`, where it has one."""
    ends = [figures[end] for end in (f"{key}_low", f"{key}_high") if end in figures]
    return (ends[0], ends[1]) if len(ends) == 2 else None


def draw_role(
    axes: Axes,
    role: str,
    x: float,
    y: float,
    up: tuple[float, float] | None,
    across: tuple[float, float] | None = None,
) -> None:
    """A role's mean at (x, y) in its colour and shape, with the intervals `up` of y and `across` of x."""
    axes.errorbar(
        [x],
        [y],
        yerr=_arms(y, up),
        xerr=_arms(x, across),
        fmt=MARKERS[role],
        color=COLOURS[role],
        markersize=8,
        capsize=4,
        elinewidth=2,
        label=ROLE_NAMES[role],
        zorder=3,
    )


def _arms(value: float, ends: tuple[float, float] | None) -> list[list[float]] | None:
    """Lengths of the two arms of an error bar; never negative, though an interval need not hold its mean."""
    if ends is None:
        return None
    return [[max(0.0, value - ends[0])], [max(0.0, ends[1] - value)]]
