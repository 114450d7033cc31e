"""The report of a sweep: `RUN/sweep/report/` compares settings over seeds, and best-of-n with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from configs.errors import UserError
from configs.schema import Ppo
from data.storage.files import write_json_lines
from pipeline.reporting.best_of_n import Point, best_points
from pipeline.reporting.figure_style import PALE, draw_best_of_n, draw_into, new_figure
from pipeline.reporting.folder import report_folder
from pipeline.reporting.page import Cell, Page, Paragraph, Picture, Section, Table, quote, write_page
from pipeline.state.results import read_results, sweep_runs
from pipeline.state.rows import CurveRow, Row, read_rows
from pipeline.terminal.format import show_number

FIGURE = "frontier.png"
MEASURES = {
    "gold_ppo": "gold score",
    "reward_ppo": "reward",
    "distinct": "different answers per prompt",
}
# The palette of Okabe and Ito without green, which is best-of-n's.
PALETTE = ("#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
MARKERS = "oDsv^P"


@dataclass(frozen=True)
class SweepResult:
    """The result of one run.

    Attributes:
        metrics: the final ones; empty if it did not finish. `reward_sft` and `reward_ppo` are of what PPO
            optimised.
        answer: its first held-out answer.
    """

    setting: str
    seed: int
    metrics: dict[str, float]
    answer: str
    ppo: Ppo

    @property
    def evaluated(self) -> bool:
        """Whether the run finished and had held-out prompts."""
        return "reward_ppo" in self.metrics

    @property
    def collapsed(self) -> bool:
        """Whether PPO scores worse than SFT, by the judge if the run has one, else by the reward."""
        measure = "gold" if "gold_ppo" in self.metrics else "reward"
        return self.metrics[f"{measure}_ppo"] < self.metrics[f"{measure}_sft"]


def write_sweep_report(root: Path) -> Path:
    """Write `root/sweep/report` about finished and unfinished runs. Returns the path of its `index.html`.

    Raises:
        UserError: `root` has no sweep.
    """
    results = sorted(map(read_result, sweep_runs(root)), key=lambda result: (result.setting, result.seed))
    if not results:
        raise UserError(f"{root}: it has no run of a sweep. Start one: tristage sweep --run-dir {root}")
    best_of_n = read_rows(root / "best" / "curve.jsonl", CurveRow)
    finished = [result for result in results if result.metrics]
    with report_folder(root / "sweep" / "report") as folder:
        draw_into(folder / FIGURE, lambda: frontier(finished, best_of_n))
        write_json_lines(
            folder / "runs.jsonl",
            [{"setting": run.setting, "seed": run.seed, **run.metrics} for run in results],
        )
        return write_page(build_page(root, results), folder)


def read_result(run: Path) -> SweepResult:
    """Read the run directory of one run. Its name is `SETTING-seed=N`."""
    run_results = read_results(run)
    settings, _, seed = run.name.rpartition("seed=")
    metrics, answers = run_results.final_metrics("ppo"), [str(row["ppo"]) for row in run_results.evaluation]
    if metrics and answers:
        metrics["distinct"] = len(set(answers)) / len(answers)
    ppo, setting = run_results.experiment.ppo, settings.strip("-") or "as configured"
    for role in ("sft", "ppo"):
        if f"{ppo.reward_metric}_{role}" in metrics:
            metrics[f"reward_{role}"] = metrics[f"{ppo.reward_metric}_{role}"]
    answer = answers[0] if answers else ""
    return SweepResult(setting, int(seed), metrics, answer, ppo)


def frontier(results: Sequence[SweepResult], best_of_n: Sequence[Row]) -> Figure:
    """Scores and variety against the KL: one point per run, one colour and marker per setting."""
    figure = new_figure(12.0, 3.9)
    panels = list(figure.subplots(1, len(MEASURES)))
    settings = list(dict.fromkeys(result.setting for result in results))
    references = sorted({result.ppo.reference_name for result in results}) or ["the SFT policy"]
    for axes, (measure, label) in zip(panels, MEASURES.items(), strict=True):
        for number, setting in enumerate(settings):
            finished = [
                result.metrics
                for result in results
                if result.setting == setting and measure in result.metrics
            ]
            axes.scatter(
                [metrics["kl"] for metrics in finished],
                [metrics[measure] for metrics in finished],
                color=PALETTE[number % len(PALETTE)],
                marker=MARKERS[(number + number // len(PALETTE)) % len(MARKERS)],  # 36 looks
                s=48,
                label=setting,
                zorder=3,
            )
        points = [] if measure == "distinct" else _best_of_n(results, best_of_n, measure.removesuffix("_ppo"))
        if points:
            draw_best_of_n(axes, [(point.kl, point.score) for point in points])
            axes.axhline(points[0].score, color=PALE, linewidth=1, linestyle=":", label="SFT")
        axes.set_xlabel(f"KL to {' or '.join(references)}, nats per response")
        axes.set_ylabel(label)
        axes.set_title(label.capitalize())
    panels[1].legend(loc="best")
    return figure


def _best_of_n(results: Sequence[SweepResult], rows: Sequence[Row], measure: str) -> list[Point]:
    """The best of each n, if it can be compared with every run."""
    kl_sft = fmean([result.metrics.get("kl_sft", 0.0) for result in results] or [0.0])
    of_runs = [best_points(rows, measure, result.ppo, kl_sft) for result in results]
    return of_runs[0] if of_runs and all(of_runs) else []


def build_page(root: Path, results: Sequence[SweepResult]) -> Page:
    """Build the page: a table of settings, the figure, and one answer of each run."""
    columns = ["Setting", "Seeds", "Gold score", "Reward", "KL", "Win rate", "Different", "Collapsed"]
    rows = [
        _setting_row(setting, list(group))
        for setting, group in groupby(results, lambda result: result.setting)
    ]
    reading = Paragraph(
        "Each cell has the mean over seeds, and the lowest and highest seed under it. A run has collapsed if "
        "its policy scores worse than the SFT policy. Different is the number of different answers per "
        "held-out prompt; it is 1 if every prompt has its own answer. If the reward rises with the KL "
        "while the gold score falls, PPO over-optimises it (Gao et al. 2022). If answers are "
        "alike, the policy ignores the prompt. Best-of-n shows what the reward model achieves without "
        "training."
    )
    samples = Table(
        ["Setting", "Seed", "First held-out answer"],
        [[Cell(run.setting), Cell(str(run.seed)), Cell(quote(run.answer))] for run in results],
        "prose",
    )
    sections = [
        Section("Settings", [Table(columns, rows), reading]),
        Section(
            "Scores and variety against KL",
            [Picture(FIGURE, "Gold score, reward and variety against KL")],
        ),
        Section("One answer of each run", [samples]),
    ]
    shared = "one SFT policy and reward model" if (root / "rm").exists() else "one SFT policy"
    return Page(f"Sweep of {root.name}", f"{len(results)} PPO runs on {shared}", sections)


def _setting_row(setting: str, results: Sequence[SweepResult]) -> list[Cell]:
    finished = [result for result in results if result.metrics]
    seeds = str(len(finished))
    if len(finished) < len(results):
        seeds += f" of {len(results)} finished"
    cells = [Cell(setting), Cell(seeds)]
    for name in ("gold_ppo", "reward_ppo", "kl", "win_rate", "distinct"):
        values = [result.metrics[name] for result in finished if name in result.metrics]
        if values:
            cells.append(
                Cell(show_number(fmean(values)), f"{show_number(min(values))} to {show_number(max(values))}")
            )
        else:
            cells.append(Cell("–"))
    evaluated = [result for result in finished if result.evaluated]
    collapsed = sum(result.collapsed for result in evaluated)
    return [*cells, Cell(f"{collapsed} of {len(evaluated)}" if evaluated else "–")]
