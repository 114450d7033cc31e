"""A comparison on disk and in the terminal: `answers.jsonl`, `evaluation.json`, a page, and a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as TerminalTable
from rich.text import Text

from apps.evaluate.answers import Answers
from apps.evaluate.candidates import Candidate
from apps.evaluate.figures import Metrics
from apps.evaluate.judges import ANSWERS as FILE
from apps.evaluate.measure import Comparison
from configs.schema import Stage
from data.people.adapters import write_adapters
from data.sources.messages import Text as Prompt
from data.sources.messages import last_text, recorded
from data.storage.files import write_json_lines, write_text
from pipeline.reporting.folder import ELSEWHERE, report_folder
from pipeline.reporting.page import Bullets, Cell, Page, Paragraph, Section, Table, quote, write_page
from pipeline.state.manifest import Manifest, output_digests
from pipeline.terminal.format import show_figure

# Columns of the table of candidates, besides the judges' scores.
LABELS = {
    "kl": "KL to SFT",
    "length": "Length",
    "ended": "Ended",
    "repetition": "Repeated",
    "distinct_2": "distinct-2",
    "different": "Different",
    "perplexity": "Perplexity",
    "cost": "Cost, tokens",
    "agreement": "Agree",
}
SAMPLES = 10
BENCHMARKS = "The mean of each metric, with 1.96 standard errors as lm-eval computes them."
READING = (
    "All candidates answer the same prompts with the same noise. Each cell has a mean over prompts with its "
    "95 % bootstrap interval. KL is in nats per answer, length in tokens. Ended: the share of answers that "
    "ended their turn. Repeated: the share of word pairs that repeat an earlier one. distinct-2: different "
    "word pairs over all word pairs. Different: different answers per prompt. Cost: tokens read and sampled "
    "for each answer."
)
WINNING = (
    "A row's win rate against each column; a tie counts as a half. Under it: the rate if both answers had "
    "the same length (Dubois et al. 2024). Intervals are paired: prompts are drawn with both answers."
)


def write_comparison(comparison: Comparison, folder: Path, title: str) -> Path:
    """Write the comparison into `folder`, beside its answers. Returns the path of its page.

    Raises:
        UserError: the folder cannot be written.
    """
    with report_folder(folder, ELSEWHERE):
        figures = {
            "metrics": comparison.metrics,
            "win_rates": comparison.win_rates,
            "by_category": comparison.by_category,
            "benchmarks": comparison.benchmarks,
            "notes": comparison.notes,
        }
        write_text(folder / "evaluation.json", json.dumps(figures, indent=1) + "\n")
        return write_page(build_page(comparison, title), folder)


def write_answers(
    folder: Path,
    manifests: Mapping[Stage, Manifest],
    prompts: Sequence[Prompt],
    answers: Mapping[str, Answers],
) -> None:
    """Write the answers into `folder`, before they are judged: a judge can fail, and they took long.

    Beside them stands which adapters gave them, of those that are the result of a stage in `manifests`.

    Raises:
        UserError: the folder cannot be written.
    """
    with report_folder(folder, ELSEWHERE):
        write_json_lines(
            folder / FILE,
            [
                {**recorded(prompt), **{name: one.texts[i] for name, one in answers.items()}}
                for i, prompt in enumerate(prompts)
            ],
        )
        behind = {name: _adapters(one.candidate, manifests) for name, one in answers.items()}
        write_adapters(folder / FILE, behind)


def _adapters(candidate: Candidate, manifests: Mapping[Stage, Manifest]) -> dict[str, str]:
    """SHA-256 of what the candidate's answers depend on: its policy, and what picks the best of several."""
    stages = {candidate.policy, *(["rm"] if candidate.best_of > 1 else [])}
    return {stage: digest for stage, digest in output_digests(manifests).items() if stage in stages}


def build_page(comparison: Comparison, title: str) -> Page:
    """The page: candidates, win rates by judge, categories, and answers to read."""
    columns = columns_of(comparison)
    rows = [
        [Cell(name), *(_cell(metrics, column) for column in columns)]
        for name, metrics in comparison.metrics.items()
    ]
    sections = [
        Section(
            "Candidates",
            [Table(["", *columns.values()], rows), Paragraph(READING), *_bullets(comparison.notes)],
        ),
        *(
            Section(f"Win rates by {judge}", [_matrix(rates), Paragraph(WINNING)])
            for judge, rates in comparison.win_rates.items()
        ),
    ]
    if comparison.by_category:
        sections.append(Section("By category", [_table(comparison, comparison.by_category)]))
    if comparison.benchmarks:
        table = _table(comparison, comparison.benchmarks)
        sections.append(Section("Benchmarks by lm-eval", [table, Paragraph(BENCHMARKS)]))
    sections.append(Section("The first answers", [_samples(comparison)]))
    subtitle = f"{len(comparison.metrics)} candidates, {len(comparison.prompts)} prompts"
    return Page(title, subtitle, sections)


def columns_of(comparison: Comparison) -> dict[str, str]:
    """The columns of the table of candidates that have a figure, and their labels: judges first."""
    judges = {name: f"Score by {name}" for name in comparison.win_rates}
    present = {name for metrics in comparison.metrics.values() for name in metrics}
    return {name: label for name, label in (judges | LABELS).items() if name in present}


def _cell(metrics: Metrics, name: str) -> Cell:
    if name not in metrics:
        return Cell("–")
    figure = show_figure(metrics, name)
    return Cell(figure.value, figure.bounds)


def _bullets(notes: list[str]) -> list[Bullets]:
    return [Bullets(notes)] if notes else []


def _matrix(rates: Mapping[str, Mapping[str, Metrics]]) -> Table:
    names = list(rates)
    rows = [
        [Cell(name), *(_rate(rates[name][other]) if other in rates[name] else Cell("") for other in names)]
        for name in names
    ]
    return Table(["", *(f"against {name}" for name in names)], rows)


def _rate(metrics: Metrics) -> Cell:
    raw, controlled = (str(show_figure(metrics, name)) for name in ("win_rate", "lc_win_rate"))
    return Cell(raw, f"equal length: {controlled}")


def _table(comparison: Comparison, scores: Mapping[str, Mapping[str, Metrics]]) -> Table:
    """A row for each category or benchmark, a column for each candidate that has a score in one."""
    names = [name for name in comparison.answers if any(name in of_each for of_each in scores.values())]
    rows = [
        [Cell(row), *(_cell(of_each.get(name, {}), "score") for name in names)]
        for row, of_each in scores.items()
    ]
    return Table(["", *names], rows)


def _samples(comparison: Comparison) -> Table:
    rows = [
        [
            Cell(quote(last_text(prompt))),
            *(Cell(quote(answers.texts[i])) for answers in comparison.answers.values()),
        ]
        for i, prompt in enumerate(comparison.prompts[:SAMPLES])
    ]
    return Table(["Prompt", *comparison.answers], rows, "prose")


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print a column of figures for each candidate, with its win rates against the first one."""
    table = TerminalTable(box=None, pad_edge=False)
    for heading in ("", *comparison.metrics):
        table.add_column(Text(heading))
    for name, label in columns_of(comparison).items():
        table.add_row(label, *(_in_one_line(metrics, name) for metrics in comparison.metrics.values()))
    for judge, rates in comparison.win_rates.items():
        baseline = next(iter(rates), next(iter(comparison.answers)))  # people may have judged only some
        against = {name: of_name.get(baseline, {}) for name, of_name in rates.items()}
        cells = [_in_one_line(against.get(name, {}), "win_rate") for name in comparison.metrics]
        table.add_row(Text(f"Beats {baseline}, by {judge}"), *cells)
    for row, of_each in comparison.benchmarks.items():
        cells = [_in_one_line(of_each.get(name, {}), "score") for name in comparison.metrics]
        table.add_row(Text(row), *cells)
    console.print(table)
    for note in comparison.notes:
        console.print(Text(note), soft_wrap=True)


def _in_one_line(metrics: Metrics, name: str) -> str:
    return str(show_figure(metrics, name)) if name in metrics else "–"
