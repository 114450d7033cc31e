"""A measured reward model on disk and in the terminal: JSON, scores, a page with its picture, and words."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table as TerminalTable
from rich.text import Text

from apps.evaluate.reward_models.measure import Measured
from data.storage.files import write_json_lines, write_text
from pipeline.reporting.figure_style import draw_into
from pipeline.reporting.folder import ELSEWHERE, report_folder
from pipeline.reporting.page import Cell, Page, Paragraph, Section, Table, figure_cells, write_page
from pipeline.reporting.reward_model import PICTURE, draw_report, report_blocks, verdicts
from pipeline.terminal.format import show_known
from stages.feedback.reward_evaluation import RANKINGS, REPORT
from stages.maths.statistics import Figure

MORE = "Give about {} prompts."
HEADINGS = {"accuracy": "pairs in order", "best_of_n": "best of n", "separated": "all best above all others"}
LEADERBOARD = (
    "RewardBench counts mathematics as much as all code together. RewardBench 2 counts its subsets alike, by "
    "the best of 4; its Ties count accuracy and margins, and a row is a question that is there twice."
)
READING = (
    "Pairs in order: the share of pairs that the model orders as the labels do. Best of n: how often the "
    "answer with the highest score is one of the best; by chance, one in n. All best above all others: how "
    "often every best answer has a higher score than every other. Each row counts alike here; above, each "
    "prompt does."
)


def write_measured(measured: Measured, folder: Path, title: str, subtitle: str) -> Path:
    """Write all of it into `folder`. Returns the path of the page.

    Raises:
        UserError: the folder cannot be written.
    """
    with report_folder(folder, ELSEWHERE):
        figures = {
            "of": subtitle,
            **measured.report,
            "subsets": measured.subsets,
            "sections": measured.sections,
            "rows": measured.counts,
            "notes": measured.notes,
        }
        write_text(folder / REPORT, json.dumps(figures, ensure_ascii=False, indent=1) + "\n")
        write_json_lines(folder / RANKINGS, [asdict(one) for one in measured.rankings])
        draw_into(folder / PICTURE, lambda: draw_report(measured.report))
        return write_page(build_page(measured, title, subtitle), folder)


def build_page(measured: Measured, title: str, subtitle: str) -> Page:
    """The page: the verdicts and their figures, then subsets and sections."""
    words = [*verdicts(measured.report, MORE), *measured.notes]
    sections = [Section("Is it good enough?", report_blocks(measured.report, words, drawn=True))]
    if measured.sections:
        rows = [[Cell(name), *figure_cells(one)] for name, one in measured.sections.items()]
        table = Table(["", "score", "95 % interval", "rows"], rows)
        sections.append(Section("As its leaderboard scores it", [table, Paragraph(LEADERBOARD)]))
    if len(measured.subsets) > 1 or len(measured.subsets["all"]) > 1:
        sections.append(Section("By subset", [_subsets(measured), Paragraph(READING)]))
    return Page(title, subtitle, sections)


def _subsets(measured: Measured) -> Table:
    columns = {name: text for name, text in HEADINGS.items() if name in measured.subsets["all"]}
    rows = [
        [Cell(subset), *(_cell(of.get(name)) for name in columns), Cell(f"{of['accuracy']['n']:.0f}")]
        for subset, of in measured.subsets.items()
    ]
    return Table(["Subset", *columns.values(), "rows"], rows)


def _cell(figure: Figure | None) -> Cell:
    if figure is None:
        return Cell("–")
    shown = show_known(figure)
    return Cell(shown.value, shown.bounds)


def print_measured(console: Console, measured: Measured) -> None:
    """Print the verdicts, then a line for each section and subset."""
    for line in [*verdicts(measured.report, MORE), *measured.notes]:
        console.print(Text(line), soft_wrap=True)
    table = TerminalTable(box=None, pad_edge=False)
    columns = {name: text for name, text in HEADINGS.items() if name in measured.subsets["all"]}
    for heading in ("", *columns.values(), "rows"):
        table.add_column(heading)
    for name, one in measured.sections.items():
        table.add_row(Text(name), str(show_known(one)), *[""] * (len(columns) - 1), f"{one['n']:.0f}")
    for subset, of in measured.subsets.items():
        cells = [str(show_known(of[name])) if name in of else "–" for name in columns]
        table.add_row(Text(subset), *cells, f"{of['accuracy']['n']:.0f}")
    console.print(table)
