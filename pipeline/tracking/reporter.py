"""The Tracker that a stage reports to. It passes reports on to files, the terminal and W&B."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.state.manifest import Manifest
from pipeline.terminal.progress import Display

logger = logging.getLogger("tristage")


class Sink(Protocol):
    """A destination of metrics and samples."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None: ...

    def rewind(self, step: int) -> None: ...

    def finish(self, manifest: Manifest, output: Path) -> None:
        """The stage is done. `manifest` has its results, `output` is the folder that it wrote."""

    def close(self, exit_code: int) -> None:
        """Nothing more will be logged. `exit_code` is the exit code of the process."""


class Reporter:
    """The Tracker of rank 0. It passes everything to all sinks and shows progress."""

    def __init__(self, display: Display, sinks: Sequence[Sink]) -> None:
        self._display = display
        self._sinks = list(sinks)

    def phase(self, title: str, total: int, done: int = 0) -> None:
        logger.info("phase %s: %d of %d", title, done, total)
        self._display.phase(title, total, done)

    def advance(self, units: int = 1, **metrics: float) -> None:
        self._display.advance(units, metrics)

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
        """Pass the result to every sink, and close."""
        for sink in self._sinks:
            sink.finish(manifest, output)
        self.close(0)

    def close(self, exit_code: int) -> None:
        """Close the display and every sink. `exit_code` is the exit code of the process."""
        self._display.close()
        for sink in self._sinks:
            sink.close(exit_code)


class NullReporter:
    """The Tracker of all other ranks. Notes go to the log file of the rank; the rest is discarded."""

    def phase(self, title: str, total: int, done: int = 0) -> None:
        pass

    def advance(self, units: int = 1, **metrics: float) -> None:
        pass

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        pass

    def note(self, message: str) -> None:
        logger.info(message)

    def rewind(self, step: int) -> None:
        pass
