"""What a person sees of a chat: answers as they grow, one below the other or side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from apps.answers.answer import Answer
from apps.chat.session import Answers

Notes = Mapping[str, str]  # a line below each policy's answer


def stream(console: Console, answers: Iterator[Answers]) -> Answers:
    """Print the answer of one policy as it grows. Returns it."""
    shown = 0
    last: Answers = {}
    for last in answers:
        (answer,) = last.values()
        console.print(Text(answer.text[shown:]), end="", soft_wrap=True)
        shown = len(answer.text)
    console.print()
    return last


def side_by_side(console: Console, answers: Iterator[Answers]) -> Answers:
    """Show the answers of two policies in two columns as they grow. Returns them, without showing the last.

    The caller shows the last ones with their notes; see `columns`.
    """
    last: Answers = {}
    with Live(console=console, transient=True, refresh_per_second=12) as live:
        for last in answers:
            live.update(columns(last))
    return last


def columns(answers: Answers, notes: Notes | None = None) -> Table:
    """A column for each policy, with its answer and its note."""
    table = Table(expand=True, show_edge=False, pad_edge=False, box=None, padding=(0, 2, 0, 0))
    for policy in answers:
        table.add_column(Text(policy, style="bold cyan"), ratio=1, overflow="fold")
    table.add_row(*(Text(answer.text.strip()) for answer in answers.values()))
    if notes:
        table.add_row(*(Text(notes[policy], style="dim") for policy in answers))
    return table


def note(answer: Answer, score: float | None) -> str:
    """What there is to say on an answer, in one line."""
    parts = [] if score is None else [f"score {score:+.2f}"]
    parts += [f"{len(answer.tokens)} tokens", f"seed {answer.order.seed}"]
    parts += {"stop": [], "length": ["cut at the longest answer"], None: ["stopped"]}[answer.finish]
    return " · ".join(parts)
