"""The style of all figures of a report: colours and markers by role, panels, points with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The palette of Okabe and Ito, for colour-blind readers. Markers differ as well.
COLOURS = {"base": "#767676", "sft": "#0072B2", "rm": "#CC79A7", "ppo": "#D55E00", "best": "#009E73"}
MARKERS = {"base": "s", "sft": "o", "ppo": "D"}
ROLE_NAMES = {"base": "base", "sft": "SFT", "ppo": "PPO"}
DOTS_PER_INCH = 150
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


def draw_into(file: Path, draw: Callable[[], Figure | None]) -> bool:
    """Draw a figure in this style, and write it. Without one, an outdated file is removed.

    Returns:
        Whether there is a figure.
    """
    with matplotlib.rc_context(LOOK):
        figure = draw()
        if figure is None:
            file.unlink(missing_ok=True)
            return False
        # Without matplotlib's version in its metadata, the same results give the same file.
        figure.savefig(file, dpi=DOTS_PER_INCH, metadata={"Software": None})
    return True


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches. Unlike a figure of pyplot, it needs no display and no closing."""
    return Figure(figsize=(width, height), layout="constrained")


def grid(figure: Figure, rows: int, count: int) -> list[Axes]:
    """`count` panels, two per row. A single panel takes the whole row."""
    return [figure.add_subplot(rows, min(2, count), index + 1) for index in range(count)]


def interval(metrics: Mapping[str, float], key: str) -> tuple[float, float] | None:
    """`(low, high)` of the interval of `key`, or None."""
    bounds = [metrics[bound] for bound in (f"{key}_low", f"{key}_high") if bound in metrics]
    return (bounds[0], bounds[1]) if len(bounds) == 2 else None


def draw_role(
    axes: Axes,
    role: str,
    x: float,
    y: float,
    y_interval: tuple[float, float] | None,
    x_interval: tuple[float, float] | None = None,
) -> None:
    """Draw a role's mean at (x, y) in its colour and marker, with `(low, high)` intervals."""
    axes.errorbar(
        [x],
        [y],
        yerr=_error_bar(y, y_interval),
        xerr=_error_bar(x, x_interval),
        fmt=MARKERS[role],
        color=COLOURS[role],
        markersize=8,
        capsize=4,
        elinewidth=2,
        label=ROLE_NAMES[role],
        zorder=3,
    )


def draw_best_of_n(axes: Axes, places: Sequence[tuple[float, float]]) -> None:
    """Draw the best of each n at its KL and score."""
    axes.plot(*zip(*places, strict=True), color=COLOURS["best"], marker="^", label="best of n", zorder=2)


def _error_bar(value: float, bounds: tuple[float, float] | None) -> list[list[float]] | None:
    """Lengths of an error bar below and above `value`. An interval may exclude its mean; a length is >= 0."""
    if bounds is None:
        return None
    return [[max(0.0, value - bounds[0])], [max(0.0, bounds[1] - value)]]
