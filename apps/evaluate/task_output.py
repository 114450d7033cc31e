"""Accuracy on labelled tasks on disk and in the terminal: `tasks.json`, a page, and a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as TerminalTable
from rich.text import Text

from apps.evaluate.tasks import MEAN, SUM, TaskResult, as_json
from data.storage.files import write_text
from pipeline.reporting.folder import ELSEWHERE, report_folder
from pipeline.reporting.page import Block, Bullets, Cell, Page, Paragraph, Section, Table, write_page
from pipeline.terminal.format import Figure, show_known

NOTHING = Figure("")
LABELS = {SUM: "Accuracy", MEAN: "Accuracy, per token"}
READING = (
    "The answer of a policy is the option with the highest log-likelihood after the prompt: of the whole "
    "option, or per token of it. Each cell is a mean over rows and templates, with its 95 % bootstrap "
    "interval over rows. Gain: the accuracy less that of the first policy, on the same rows and templates. "
    "always: the accuracy of giving the most frequent answer. A policy below it has learned less than that."
)


def write_tasks(results: Sequence[TaskResult], folder: Path, title: str) -> Path:
    """Write the results into `folder`. Returns the path of the page.

    Raises:
        UserError: the folder cannot be written.
    """
    with report_folder(folder, ELSEWHERE):
        write_text(folder / "tasks.json", json.dumps(as_json(results), indent=1, ensure_ascii=False) + "\n")
        return write_page(build_page(results, title), folder, "tasks", "tasks")


def build_page(results: Sequence[TaskResult], title: str) -> Page:
    """One section for each task: policies, then each template."""
    sections = [Section(_title(one), _blocks(one)) for one in results]
    return Page(
        title, f"{len(results)} tasks", [Section("How to read this", [Paragraph(READING)]), *sections]
    )


def _title(result: TaskResult) -> str:
    return f"{result.task}{', held out as a whole' * result.held_out}"


def _blocks(result: TaskResult) -> list[Block]:
    rows = [[Cell(name), *map(_cell, cells)] for name, cells in _rows(result)]
    names = list(result.accuracy)
    templates = [
        [Cell(template), *(_cell(show_known(result.accuracy[name][template][SUM])) for name in names)]
        for template in result.accuracy[names[0]]
        if template
    ]
    notes: list[Block] = [Bullets(result.notes)] if result.notes else []
    return [Table(["", *HEADINGS], rows), Table(["Template", *names], templates), *notes]


HEADINGS = [*LABELS.values(), "Over templates", "Gain", "Gain, per token"]


def _rows(result: TaskResult) -> list[tuple[str, list[Figure]]]:
    rows = []
    for name, figures in result.accuracy.items():
        low, high = result.spread(name, SUM)
        gain = result.gain.get(name)
        gains = [show_known(gain[measure]) if gain else NOTHING for measure in LABELS]
        accuracies = [show_known(figures[""][measure]) for measure in LABELS]
        rows.append((name, [*accuracies, Figure(f"{low:.2f} to {high:.2f}"), *gains]))
    majority = f"always {result.majority_answer!r}"
    rows.append((majority, [show_known(result.majority), *[NOTHING] * 4]))
    rows.append(("guessing", [Figure(f"{result.chance:.2f}"), *[NOTHING] * 4]))
    return rows


def _cell(figure: Figure) -> Cell:
    return Cell(figure.value, figure.bounds)


def print_tasks(console: Console, results: Sequence[TaskResult]) -> None:
    """Print a table of policies for each task."""
    for one in results:
        rows = int(one.majority["n"])
        templates = len(next(iter(one.accuracy.values()))) - 1
        console.print(Text(f"{_title(one)}: {rows} rows, {templates} templates", "bold"))
        table = TerminalTable(box=None, pad_edge=False)
        for heading in ("", *HEADINGS):
            table.add_column(heading)
        for name, cells in _rows(one):
            table.add_row(Text(name), *map(str, cells))
        console.print(table)
        for note in one.notes:
            console.print(Text(note), soft_wrap=True)
