"""The figures of a report. Each function draws from the results, or returns None if they lack the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.reporting.best_of_n import Point, best_points
from pipeline.reporting.curves import curves
from pipeline.reporting.figure_style import (
    COLOURS,
    FAINT,
    INK,
    PALE,
    ROLE_NAMES,
    draw_best_of_n,
    draw_into,
    draw_role,
    grid,
    interval,
    new_figure,
)
from pipeline.reporting.reward_model import PICTURE, Report, draw_report
from pipeline.reporting.reward_words import reward_label
from pipeline.state.results import Results
from pipeline.state.rows import Row
from pipeline.terminal.format import show_figure


def gold(results: Results) -> Figure | None:
    """Gold score of base, SFT and PPO with intervals, and the difference of PPO to SFT for each prompt."""
    metrics = results.final_metrics("ppo")
    roles = [role for role in ROLE_NAMES if f"gold_{role}" in metrics]
    if not roles:
        return None
    pairs = [row for row in results.evaluation if _has(row, "gold_ppo", "gold_sft")]
    figure = new_figure(8.4, 3.4)
    panels = grid(figure, 1, 2 if pairs else 1)
    for x, role in enumerate(roles):
        value = metrics[f"gold_{role}"]
        draw_role(panels[0], role, x, value, interval(metrics, f"gold_{role}"))
        panels[0].annotate(
            show_figure(metrics, f"gold_{role}").value,
            (x, value),
            (9, 0),
            textcoords="offset points",
            va="center",
        )
    panels[0].set_title("Mean, with its 95 % interval")
    panels[0].set_ylabel(f"gold score ({results.experiment.ppo.judge})")
    panels[0].set_xticks(range(len(roles)), [ROLE_NAMES[role] for role in roles])
    panels[0].set_xlim(-0.5, len(roles) - 0.35)
    if pairs:
        _draw_differences(panels[1], sorted(row["gold_ppo"] - row["gold_sft"] for row in pairs))
    for axes in panels:
        axes.grid(axis="x", visible=False)
    return figure


def _draw_differences(axes: Axes, differences: Sequence[float]) -> None:
    won = sum(value > 0 for value in differences)
    lost = sum(value < 0 for value in differences)
    colours = [COLOURS["ppo" if value > 0 else "sft"] for value in differences]
    axes.bar(range(1, len(differences) + 1), differences, width=1.0, color=colours, linewidth=0)
    axes.axhline(0, color=PALE, linewidth=1)
    axes.set_title(f"PPO better {won}, worse {lost}, equal {len(differences) - won - lost}")
    axes.set_xlabel("held-out prompts, sorted by difference")
    axes.set_ylabel("gold score, PPO less SFT")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def score_against_kl(results: Results) -> Figure | None:
    """The optimised score, and the held-out score, against the KL to the reference."""
    rollouts = [row for row in results.metrics["ppo"] if _has(row, "objective/kl", "objective/scores")]
    if not rollouts:
        return None
    measure = _held_out_measure(results)
    figure = new_figure(8.4, 3.6)
    panels = grid(figure, 1, 2 if measure else 1)
    last = max(row["step"] for row in rollouts)
    points = [(row["objective/kl"], row["objective/scores"]) for row in rollouts]
    panels[0].plot(*zip(*points, strict=True), color=FAINT, linewidth=1, zorder=1)
    dots = _draw_dots(panels[0], points, rollouts, last)
    panels[0].set_title("Rollouts, a dot per iteration")
    panels[0].set_ylabel(reward_label(results.experiment.ppo))
    if measure:
        _draw_held_out(panels[1], results, measure, last)
    for axes in panels:
        axes.set_xlabel(f"KL to {results.experiment.ppo.reference_name}, nats per response")
    bar = figure.colorbar(dots, ax=panels, pad=0.015, aspect=30, label="PPO iteration")
    bar.outline.set_linewidth(0)
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _held_out_measure(results: Results) -> str | None:
    """`gold` if a judge scored held-out prompts, else `score` if there are any, else None."""
    metrics, rows = results.final_metrics("ppo"), results.metrics["ppo"]
    reward = f"{results.experiment.ppo.reward_metric}_ppo"
    if "gold_ppo" in metrics or any(_has(row, "eval/gold") for row in rows):
        return "gold"
    return "score" if reward in metrics or any(_has(row, "eval/score") for row in rows) else None


def _draw_held_out(axes: Axes, results: Results, measure: str, last: int) -> None:
    """The path from SFT over the evaluations to the final policy. SFT and final policy have intervals.

    SFT, and best of n with it, has a place only if the KL is to SFT.
    """
    ppo_config, metrics = results.experiment.ppo, results.final_metrics("ppo")
    axes.set_title("Held-out prompts")
    axes.set_ylabel(f"gold score ({ppo_config.judge})" if measure == "gold" else reward_label(ppo_config))
    rows = [row for row in results.metrics["ppo"] if _has(row, "eval/kl", f"eval/{measure}")]
    points = [(row["eval/kl"], row[f"eval/{measure}"]) for row in rows]
    _draw_dots(axes, points, rows, last)
    figure = "gold" if measure == "gold" else ppo_config.reward_metric
    sft, ppo = f"{figure}_sft", f"{figure}_ppo"
    to_sft = ppo_config.reference == "sft"
    kl_sft = metrics.get("kl_sft", 0.0)  # of its samples, which top-k or top-p truncate
    if to_sft and {sft, "kl"} <= metrics.keys():
        draw_role(axes, "sft", kl_sft, metrics[sft], interval(metrics, sft))
        points = [(kl_sft, metrics[sft]), *points]
    if {ppo, "kl"} <= metrics.keys():
        draw_role(axes, "ppo", metrics["kl"], metrics[ppo], interval(metrics, ppo), interval(metrics, "kl"))
        points = [*points, (metrics["kl"], metrics[ppo])]
    _draw_best_of_n(axes, best_points(results.best_of_n, measure, ppo_config, kl_sft))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")
    axes.plot(*zip(*points, strict=True), color=FAINT, linewidth=1, zorder=1)


def _draw_best_of_n(axes: Axes, points: Sequence[Point]) -> None:
    if not points:
        return
    places = [(point.kl, point.score) for point in points]
    draw_best_of_n(axes, places)
    for point, place in zip(points, places, strict=True):
        axes.annotate(str(point.n), place, (0, 6), textcoords="offset points", ha="center", fontsize=8)


def _draw_dots(axes: Axes, points: Sequence[tuple[float, float]], rows: Sequence[Row], last: int) -> Any:
    """Draw a dot at each (x, y), coloured by the iteration of its row."""
    return axes.scatter(
        [x for x, _ in points],
        [y for _, y in points],
        c=[row["step"] for row in rows],
        cmap="viridis",
        vmin=0,
        vmax=last,
        s=34,
        edgecolors=INK,
        linewidths=0.4,
        zorder=2,
    )


def _has(row: Row, *names: str) -> bool:
    """Whether the row has a number for each name."""
    return all(row.get(name) is not None for name in names)


DRAWINGS: dict[str, Callable[[Results], Figure | None]] = {
    "gold.png": gold,
    "score-kl.png": score_against_kl,
    "curves-sft.png": curves("sft"),
    "curves-rm.png": curves("rm"),
    "curves-ppo.png": curves("ppo"),
}


def draw_all(results: Results, reward_model: Report | None, folder: Path) -> set[str]:
    """Draw all figures that have data into `folder`, and remove outdated ones. Returns the file names.

    Args:
        reward_model: the figures of the reward model, if there are any.
    """
    drawings = DRAWINGS | {PICTURE: lambda _: draw_report(reward_model) if reward_model else None}
    return {name for name, draw in drawings.items() if draw_into(folder / name, partial(draw, results))}
