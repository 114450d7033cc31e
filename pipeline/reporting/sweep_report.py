"""The report of a sweep: `RUN/sweep/report/`, every setting over its seeds, and best-of-n beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean

import matplotlib
from matplotlib.figure import Figure

from configs.errors import UserError
from data.storage.files import write_json_lines, write_text
from pipeline.reporting.figure_style import COLOURS, LOOK, PALE, new_figure
from pipeline.reporting.figures import DOTS_PER_INCH
from pipeline.reporting.page import Cell, Page, Paragraph, Picture, Section, Table, quote, render
from pipeline.state.results import Row, found_runs, read_lines, read_results
from pipeline.terminal.format import show_number

FIGURE = "frontier.png"
MEASURES = {
    "gold_ppo": "gold score",
    "rm_score_ppo": "reward model's score",
    "distinct": "different answers per prompt",
}
PALETTE = ("#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")  # Okabe and Ito, less green
MARKERS = "oDsv^P"


@dataclass(frozen=True)
class Outcome:
    """What came of one run: its final figures, {} where it did not finish."""

    setting: str
    seed: int
    figures: dict[str, float]
    answer: str

    @property
    def judged(self) -> bool:
        """Whether it finished, and prompts were held out for it."""
        return "rm_score_ppo" in self.figures

    @property
    def collapsed(self) -> bool:
        """Worse than the policy that it started from, by the judge, else by the reward model."""
        measure = "gold" if "gold_ppo" in self.figures else "rm_score"
        return self.figures[f"{measure}_ppo"] < self.figures[f"{measure}_sft"]


def write_sweep_report(root: Path) -> Path:
    """Sum up the runs in `root/sweep`, finished or not; returns the page in HTML.

    Raises:
        UserError: there is no sweep in `root`.
    """
    outcomes = sorted(map(read_outcome, found_runs(root)), key=lambda each: (each.setting, each.seed))
    if not outcomes:
        raise UserError(f"{root}: no run of a sweep in it. Start one: tristage sweep --run-dir {root}")
    best_of_n = read_lines(root / "best" / "curve.jsonl", ["n", "kl", "rm_score"])
    folder = root / "sweep" / "report"
    folder.mkdir(exist_ok=True)
    done = [each for each in outcomes if each.figures]
    with matplotlib.rc_context(LOOK):
        figure = frontier(done, best_of_n)
        figure.savefig(folder / FIGURE, dpi=DOTS_PER_INCH, metadata={"Software": None})
    write_json_lines(
        folder / "runs.jsonl",
        [{"setting": each.setting, "seed": each.seed, **each.figures} for each in outcomes],
    )
    page = build_page(root, outcomes, best_of_n)
    write_text(folder / "report.md", render(page, "md"))
    write_text(folder / "index.html", render(page, "html"))
    return folder / "index.html"


def read_outcome(run: Path) -> Outcome:
    results = read_results(run)
    settings, _, seed = run.name.rpartition("seed=")
    figures, answers = results.figures("ppo"), [str(row["ppo"]) for row in results.evaluation]
    if figures and answers:
        figures["distinct"] = len(set(answers)) / len(answers)
    return Outcome(settings.strip("-") or "as configured", int(seed), figures, answers[0] if answers else "")


def frontier(outcomes: Sequence[Outcome], best_of_n: Sequence[Row]) -> Figure:
    """Scores and variety against the KL, a point for each run, a colour and shape for each setting."""
    figure = new_figure(12.0, 3.9)
    panels = list(figure.subplots(1, len(MEASURES)))
    settings = list(dict.fromkeys(each.setting for each in outcomes))
    for axes, (measure, label) in zip(panels, MEASURES.items(), strict=True):
        for number, setting in enumerate(settings):
            figures = [
                each.figures for each in outcomes if each.setting == setting and measure in each.figures
            ]
            axes.scatter(
                [each["kl"] for each in figures],
                [each[measure] for each in figures],
                color=PALETTE[number % len(PALETTE)],
                marker=MARKERS[number % len(MARKERS)],
                s=48,
                label=setting,
                zorder=3,
            )
        name = measure.removesuffix("_ppo")
        places = [(row["kl"], row[name]) for row in best_of_n if name in row]
        if places:
            axes.plot(
                *zip(*places, strict=True), color=COLOURS["best"], marker="^", label="best of n", zorder=2
            )
            axes.axhline(places[0][1], color=PALE, linewidth=1, linestyle=":", label="SFT")
        axes.set_xlabel("KL to SFT, nats per response")
        axes.set_ylabel(label)
        axes.set_title(label.capitalize())
    panels[1].legend(loc="best")
    return figure


def build_page(root: Path, outcomes: Sequence[Outcome], best_of_n: Sequence[Row]) -> Page:
    columns = ["Setting", "Seeds", "Gold score", "Reward score", "KL", "Win rate", "Different", "Collapsed"]
    rows = [_setting(setting, list(group)) for setting, group in groupby(outcomes, lambda each: each.setting)]
    reading = Paragraph(
        "Means over seeds, lowest and highest seed under them. A run has collapsed if its policy scores "
        "worse than the SFT policy that it started from. Different: answers that differ, for each held-out "
        "prompt; 1 where every prompt has its own. Where the reward score still rises along the KL while the "
        "gold score falls, the reward model is over-optimised (Gao et al. 2022); where answers become alike, "
        "the policy has given up the prompt for what scores best. Best-of-n shows what the reward model is "
        "worth without training."
    )
    samples = Table(
        ["Setting", "Seed", "First held-out answer"],
        [[Cell(each.setting), Cell(str(each.seed)), Cell(quote(each.answer))] for each in outcomes],
        "prose",
    )
    sections = [
        Section("Settings", [Table(columns, rows), reading]),
        Section(
            "Scores and variety against KL",
            [Picture(FIGURE, "Gold score, reward score and variety against KL")],
        ),
        Section("One answer of each run", [samples]),
    ]
    return Page(
        f"Sweep of {root.name}", f"{len(outcomes)} PPO runs on one SFT policy and reward model", sections
    )


def _setting(setting: str, outcomes: Sequence[Outcome]) -> list[Cell]:
    done = [each for each in outcomes if each.figures]
    seeds = str(len(done)) if len(done) == len(outcomes) else f"{len(done)} of {len(outcomes)} finished"
    cells = [Cell(setting), Cell(seeds)]
    for name in ("gold_ppo", "rm_score_ppo", "kl", "win_rate", "distinct"):
        values = [each.figures[name] for each in done if name in each.figures]
        if values:
            cells.append(
                Cell(show_number(fmean(values)), f"{show_number(min(values))} to {show_number(max(values))}")
            )
        else:
            cells.append(Cell("–"))
    judged = [each for each in done if each.judged]
    return [*cells, Cell(f"{sum(each.collapsed for each in judged)} of {len(judged)}" if judged else "–")]
