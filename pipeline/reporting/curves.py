"""Training curves of the three stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from configs.schema import Stage
from pipeline.reporting.figure_style import COLOURS, INK, PALE, grid, new_figure
from pipeline.reporting.reward_words import is_reward_model
from pipeline.state.results import Results

MANY_STEPS = 40


@dataclass(frozen=True)
class Line:
    """A metric of a panel, in the colour of its stage. Held-out metrics are dark, `pale` ones grey."""

    name: str
    label: str = ""
    held_out: bool = False
    pale: bool = False
    dashes: str = "-"


@dataclass(frozen=True)
class Panel:
    """A title, the unit of the y axis, and metrics.

    Attributes:
        title: `{reference}` in it stands for the policy that the KL is to.
        level: a reference value, drawn as a dashed line.
        share: the y axis goes from 0 to 1, so that noise on a small share does not fill the panel.
    """

    title: str
    unit: str
    lines: tuple[Line, ...]
    level: float | None = None
    share: bool = False


PANELS: dict[Stage, tuple[Panel, ...]] = {
    "sft": (
        Panel(
            "Loss", "nats per token", (Line("loss", "training batch"), Line("eval/loss", "held out", True))
        ),
        Panel(
            "Token accuracy",
            "share of tokens",
            (Line("mean_token_accuracy", "training batch"),),
        ),
    ),
    "rm": (
        Panel(
            "Ranking loss",
            "nats per pair",
            (Line("loss", "training batch"), Line("eval/loss", "held out", True)),
        ),
        Panel(
            "Pairs in the right order",
            "share of pairs",
            (Line("accuracy", "training batch"), Line("eval/accuracy", "held out", True)),
            level=0.5,
        ),
    ),
    "ppo": (
        Panel(
            "Score of the rollouts",
            "score",
            (
                Line("objective/scores", "reward, less penalties"),
                Line("objective/rlhf_reward", "less KL penalty", pale=True),
            ),
            level=0.0,
        ),
        Panel("KL to {reference}", "nats per response", (Line("objective/kl"),), level=0.0),
        Panel("Entropy", "nats per token", (Line("objective/entropy"),)),
        Panel("Response length", "tokens", (Line("completions/mean_length"),)),
        Panel(
            "Responses without an end", "share of responses", (Line("completions/clipped_ratio"),), share=True
        ),
        Panel(
            "Variance explained by the critic",
            "share of variance",
            (Line("val/explained_variance"),),
            level=0.0,
        ),
    ),
}


def curves(stage: Stage) -> Callable[[Results], Figure | None]:
    """Return the function that draws the panels of `stage`, two per row."""

    def draw(results: Results) -> Figure | None:
        panels = [*PANELS[stage], *_terms(results, stage)]
        panels = [panel for panel in panels if _drawable(results, stage, panel)]
        if not panels:
            return None
        rows = (len(panels) + 1) // 2
        figure = new_figure(8.4, 0.6 + 2.5 * rows)
        for axes, panel in zip(grid(figure, rows, len(panels)), panels, strict=True):
            _draw_panel(axes, results, stage, panel)
        return figure

    return draw


def _terms(results: Results, stage: Stage) -> list[Panel]:
    """A panel with each term of PPO's reward, unless the reward is the reward model's score alone."""
    ppo = results.experiment.ppo
    if stage != "ppo" or is_reward_model(ppo):
        return []
    dashes = cycle(("-", "--", ":", "-."))
    lines = [Line(f"rewards/{term.label}/mean", term.label, dashes=next(dashes)) for term in ppo.rewards]
    return [Panel("Terms of the reward", "mean of the rollouts, without weights", tuple(lines))]


def _drawable(results: Results, stage: Stage, panel: Panel) -> bool:
    return any(results.curve(stage, line.name)[0] for line in panel.lines)


def _draw_panel(axes: Axes, results: Results, stage: Stage, panel: Panel) -> None:
    for line in panel.lines:
        _draw_line(axes, results, stage, line)
    if panel.level is not None:
        axes.axhline(panel.level, color=PALE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    if panel.share:
        axes.set_ylim(-0.03, 1.03)
    axes.set_title(panel.title.format(reference=results.experiment.ppo.reference_name))
    axes.set_ylabel(panel.unit)
    axes.set_xlabel("PPO iteration" if stage == "ppo" else "optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(axes.get_legend_handles_labels()[0]) > 1:
        # Below the panel, the legend covers no curve.
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)


def _draw_line(axes: Axes, results: Results, stage: Stage, line: Line) -> None:
    steps, values = results.curve(stage, line.name)
    if not steps:
        return
    style: dict[str, Any] = {"color": PALE if line.pale else COLOURS[stage], "linestyle": line.dashes}
    if line.held_out:
        style = {"color": INK, "linestyle": "--", "marker": "o", "linewidth": 1.2}
        lows, highs = (results.curve(stage, f"{line.name}_{end}")[1] for end in ("low", "high"))
        if len(lows) == len(highs) == len(steps):
            axes.vlines(steps, lows, highs, color=INK, linewidth=1.2)
    elif len(steps) < MANY_STEPS:
        style["marker"] = "."
    axes.plot(steps, values, label=line.label, **style)
