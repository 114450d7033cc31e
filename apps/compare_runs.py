"""`tristage compare`: what differs between runs, their metrics side by side, their curves in one figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table as TerminalTable
from rich.text import Text

from configs.errors import UserError
from configs.schema import ALL_STAGES, Stage
from pipeline.reporting.figure_style import draw_into, grid, new_figure
from pipeline.reporting.folder import ELSEWHERE, report_folder
from pipeline.reporting.page import Cell, Page, Paragraph, Picture, Section, Table, write_page
from pipeline.reporting.sweep_report import MARKERS, PALETTE
from pipeline.state.results import Results, read_results
from pipeline.terminal.summary import key_metrics

FIGURE = "curves.png"
MOST = len(PALETTE)
# The curves that say how a stage went: stage, metric, title.
CURVES: tuple[tuple[Stage, str, str], ...] = (
    ("sft", "eval/loss", "SFT: held-out loss"),
    ("rm", "eval/accuracy", "Reward model: held-out accuracy"),
    ("ppo", "objective/scores", "PPO: score of the rollouts"),
    ("ppo", "objective/kl", "PPO: KL to the reference, nats per response"),
    ("ppo", "eval/gold", "PPO: gold score, held out"),
    ("ppo", "objective/entropy", "PPO: entropy, nats per token"),
)


@dataclass(frozen=True)
class Runs:
    """Runs to compare, each under a name that no other has."""

    by_name: Mapping[str, Results]

    def settings(self) -> Iterator[tuple[str, list[str]]]:
        """Keys of the configuration whose values differ, with the value of each run."""
        trees = [dict(_leaves(run.experiment.model_dump(mode="json"))) for run in self.by_name.values()]
        for key in dict.fromkeys(key for tree in trees for key in tree):
            values = ["null" if (value := tree.get(key, "–")) is None else str(value) for tree in trees]
            if len(set(values)) > 1 and key != "name":
                yield key, values

    def metrics(self) -> Iterator[tuple[Stage, str, list[str]]]:
        """Stage and label of each key metric, with its value and interval in each run."""
        for stage in ALL_STAGES:
            shown = [
                key_metrics(run.manifests[stage]) if run.finished(stage) else {}
                for run in self.by_name.values()
            ]
            for label in dict.fromkeys(label for of_run in shown for label in of_run):
                yield stage, label, [of_run.get(label, "–") for of_run in shown]


def read_runs(folders: Sequence[Path]) -> Runs:
    """Read the runs.

    Raises:
        UserError: there are fewer than two or too many, one is no run directory, or a file there is damaged.
    """
    different = list(dict.fromkeys(folder.resolve() for folder in folders))
    if not 2 <= len(different) <= MOST:
        raise UserError(f"tristage compare: name from 2 to {MOST} different run directories.")
    names = [folder.name for folder in different]
    if len(set(names)) < len(names):
        names = [f"{folder.parent.name}/{folder.name}" for folder in different]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in different]
    return Runs(dict(zip(names, map(read_results, different), strict=True)))


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every leaf of a tree of dictionaries."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}" if path else key)
    else:
        yield path, tree


def print_runs(console: Console, runs: Runs) -> None:
    """Print both tables."""
    for title, rows in (
        ("settings that differ", [(key, *values) for key, values in runs.settings()]),
        ("results", [(f"{stage} {label}", *values) for stage, label, values in runs.metrics()]),
    ):
        table = TerminalTable(title=title, title_justify="left", box=None, pad_edge=False)
        for heading in ("", *runs.by_name):
            table.add_column(heading, overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
        console.print()


def write_comparison(runs: Runs, folder: Path) -> Path:
    """Write a page with both tables and the figure into `folder`. Returns the path of the page.

    Raises:
        UserError: the folder cannot be written.
    """
    with report_folder(folder, ELSEWHERE):
        with_figure = draw_into(folder / FIGURE, lambda: draw(runs))
        return write_page(build_page(runs, with_figure=with_figure), folder)


def draw(runs: Runs) -> Figure | None:
    """A panel for each curve that some run has, and a line for each run; None without any curve."""
    shown = [
        curve for curve in CURVES if any(run.curve(curve[0], curve[1])[0] for run in runs.by_name.values())
    ]
    if not shown:
        return None
    rows = (len(shown) + 1) // 2
    figure = new_figure(8.4, 0.8 + 2.4 * rows)
    panels = grid(figure, rows, len(shown))
    for axes, (stage, metric, title) in zip(panels, shown, strict=True):
        for number, (name, run) in enumerate(runs.by_name.items()):
            steps, values = run.curve(stage, metric)
            axes.plot(
                steps, values, color=PALETTE[number], marker=MARKERS[number], markersize=3.5, label=name
            )
        axes.set_title(title)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def build_page(runs: Runs, *, with_figure: bool) -> Page:
    """Build the page."""
    names = list(runs.by_name)
    settings = [[Cell(key), *map(Cell, values)] for key, values in runs.settings()]
    metrics = [[Cell(stage), Cell(label), *map(Cell, values)] for stage, label, values in runs.metrics()]
    sections = [
        Section(
            "Settings that differ",
            [Table(["Key", *names], settings) if settings else Paragraph("The configurations are equal.")],
        ),
        Section("Results", [Table(["Stage", "Metric", *names], metrics)]),
    ]
    if with_figure:
        sections.insert(1, Section("Curves", [Picture(FIGURE, "Curves of all runs")]))
    return Page("Comparison of runs", ", ".join(names), sections)
