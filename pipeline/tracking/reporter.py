"""What a stage reports to: files, the terminal and Weights & Biases behind one Tracker."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.state.manifest import Manifest
from pipeline.terminal.progress import Display

logger = logging.getLogger("tristage")


class Sink(Protocol):
    """A place that metrics and samples go to."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None: ...

    def rewind(self, step: int) -> None: ...

    def finish(self, manifest: Manifest, output: Path) -> None:
        """The stage is done, and `manifest` says with what result."""

    def close(self, exit_code: int) -> None:
        """No more will come; `exit_code` is what the process will exit with."""


class Reporter:
    """The Tracker of rank 0: hands what it is told to every sink, and shows progress."""

    def __init__(self, display: Display, sinks: Sequence[Sink]) -> None:
        self._display = display
        self._sinks = list(sinks)

    def phase(self, title: str, total: int, done: int = 0) -> None:
        logger.info("phase %s: %d of %d", title, done, total)
        self._display.phase(title, total, done)

    def advance(self, units: int = 1, **figures: float) -> None:
        self._display.advance(units, figures)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for sink in self._sinks:
            sink.log(metrics, step)

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        for sink in self._sinks:
            sink.samples(rows, step)

    def note(self, message: str) -> None:
        logger.info(message)
        self._display.note(message)

    def rewind(self, step: int) -> None:
        for sink in self._sinks:
            sink.rewind(step)

    def finish(self, manifest: Manifest, output: Path) -> None:
        """Hand the result to every sink, and close."""
        for sink in self._sinks:
            sink.finish(manifest, output)
        self.close(0)

    def close(self, exit_code: int) -> None:
        """End the display and every sink; `exit_code` is what the process will exit with."""
        self._display.close()
        for sink in self._sinks:
            sink.close(exit_code)


class NullReporter:
    """The Tracker of the other ranks: notes go to the rank's log file, the rest nowhere."""

    def phase(self, title: str, total: int, done: int = 0) -> None:
        pass

    def advance(self, units: int = 1, **figures: float) -> None:
        pass

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        pass

    def note(self, message: str) -> None:
        logger.info(message)

    def rewind(self, step: int) -> None:
        pass
