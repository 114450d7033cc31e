"""`tristage collect report`: what people have given, and how well they agree."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from apps.collect.figures import progress
from configs.errors import UserError
from data.people.results import write_results
from data.people.round import FOLDER, Round, has_round, locked, read_round, rounds
from data.storage.files import write_text
from pipeline.state.run_directory import RunDirectory

FILE = "report.json"
NAMES = {"pairwise": "agreement of two people", "tau_b": "Kendall's τ-b", "alpha": "Krippendorff's α"}


def rounds_of(run: RunDirectory, folder: Path | None) -> list[Round]:
    """All rounds of a run, or the one in `folder`.

    Raises:
        UserError: there is none, or one is damaged.
    """
    if folder and has_round(folder):
        return [read_round(folder)]
    found = [] if folder else rounds(run.path)
    if not found:
        raise UserError(
            f"{folder or run.path / FOLDER}: no labelling round is there. Begin one with tristage collect "
            "rankings, or name another run with --run-dir."
        )
    return found


def report(console: Console, content: Round) -> Path:
    """Print what a round has come to, and write it to `report.json` in its folder. Returns the file.

    What stages read is written anew, too: a server that was killed may have left it behind. A server that
    runs writes it itself.
    """
    with suppress(UserError), locked(content.folder):
        write_results(read_round(content.folder))
    figures = progress(content)
    _print(console, content, figures)
    file = content.folder / FILE
    write_text(file, json.dumps(figures, ensure_ascii=False, indent=1) + "\n")
    return file


def _print(console: Console, content: Round, figures: dict[str, Any]) -> None:
    skips = ", ".join(f"{reason} {count}" for reason, count in figures["skips"].items())
    console.print(
        Text(
            f"{figures['kind']}: {figures['labelled']} of {figures['total']} tasks labelled, "
            f"{figures['missing']} missing{f'; skipped: {skips}' if skips else ''}{_uncompared(figures)}"
        ),
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False)
    for heading in ("labeller", "done", "skipped", "today", "median seconds", "agrees with itself"):
        table.add_column(heading, justify="left" if heading == "labeller" else "right")
    for person in figures["people"]:
        seconds = person["median_seconds"]
        table.add_row(
            Text(person["name"]),
            *(str(person[name]) for name in ("done", "skipped", "today")),
            "" if seconds is None else f"{seconds:.1f}",
            _shown(person["self_agreement"]),
        )
    console.print(table)
    for name, figure in figures["agreement"].items():
        if figure is not None:
            console.print(Text(f"{NAMES[name]}: {_shown(figure)} (n = {figure['n']} tasks)"))
    if won := figures["win_rate"]:
        line = f"people prefer {won['policy']} to {won['against']}: {_shown(won)} (n = {won['n']} prompts)"
        console.print(Text(line))
    console.print(Text(f"stages read {content.results_file}"), soft_wrap=True)
    console.print()


def _uncompared(figures: dict[str, Any]) -> str:
    few = figures["uncompared"]
    return f"; still without a second label: {few} of the tasks for everyone" if few else ""


def _shown(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return ""
    interval = "" if figure["low"] is None else f" [{figure['low']:.2f}, {figure['high']:.2f}]"
    return f"{figure['value']:.2f}{interval}"
