"""Progress display: live bars at a terminal, a few plain lines if output goes to a file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from pipeline.terminal.format import show_metrics, show_seconds

SHARE_PER_LINE = 0.1
SECONDS_PER_LINE = 30.0


class Display(Protocol):
    """Shows progress through phases. A phase that begins within another one interrupts it until it ends."""

    def phase(self, title: str, total: int, done: int) -> None: ...

    def advance(self, units: int, metrics: Mapping[str, float]) -> None: ...

    def note(self, message: str) -> None: ...

    def close(self) -> None: ...


class LiveDisplay:
    """Progress bars of rich for a terminal, one for each phase in progress."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}", style="cyan"),
            console=console,
        )
        self._open: list[TaskID] = []

    def phase(self, title: str, total: int, done: int) -> None:
        self._progress.start()
        self._open.append(self._progress.add_task(title, total=total, completed=done, metrics=""))

    def advance(self, units: int, metrics: Mapping[str, float]) -> None:
        if not self._open:
            return
        task = self._open[-1]
        self._progress.update(task, advance=units, metrics=show_metrics(metrics))
        if self._progress.tasks[self._progress.task_ids.index(task)].finished:
            self._open.pop()
            if self._open:  # remove the bar of an evaluation within training
                self._progress.remove_task(task)

    def note(self, message: str) -> None:
        self._progress.console.print(Text(message))

    def close(self) -> None:
        self._progress.stop()


@dataclass
class _Phase:
    """The state of a phase in units done, and its last printed line. Times are in seconds."""

    title: str
    total: int
    start: int
    done: int
    printed: int
    began: float
    printed_at: float


class PlainDisplay:
    """Prints a line per tenth of a phase, or every 30 seconds if a tenth takes longer."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._open: list[_Phase] = []

    def phase(self, title: str, total: int, done: int) -> None:
        now = self._clock()
        self._open.append(_Phase(title, total, done, done, done, now, now))
        if done:
            self._write(f"{title} resumes from {done}/{total}")

    def advance(self, units: int, metrics: Mapping[str, float]) -> None:
        if not self._open:
            return
        phase, now = self._open[-1], self._clock()
        phase.done += units
        finished = phase.done >= phase.total
        due = phase.done - phase.printed >= SHARE_PER_LINE * phase.total
        if due or finished or now - phase.printed_at >= SECONDS_PER_LINE:
            phase.printed, phase.printed_at = phase.done, now
            self._write(f"{phase.title} {_position(phase, now)}  {show_metrics(metrics)}".rstrip())
        if finished:
            self._open.pop()

    def note(self, message: str) -> None:
        self._write(message)

    def close(self) -> None:
        pass


def _position(phase: _Phase, now: float) -> str:
    """`12/120  0:31, 4:40 left`: units, elapsed time, estimate of the remaining time."""
    elapsed, done_now = now - phase.began, phase.done - phase.start
    left = elapsed / done_now * (phase.total - phase.done) if done_now else 0.0
    times = show_seconds(elapsed) + (f", {show_seconds(left)} left" if left >= 1 else "")
    return f"{phase.done}/{phase.total}  {times}"


def make_display() -> Display:
    """The display that fits standard output."""
    console = Console()
    if console.is_terminal:
        return LiveDisplay(console)
    return PlainDisplay(lambda line: print(line, flush=True))
