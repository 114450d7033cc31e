"""Log files: one for each rank, of limited size."""

from __future__ import annotations

import faulthandler
import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.processes import logs


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """Restore logging after the test."""
    root = logging.getLogger()
    handlers_before, level, raising = root.handlers, root.level, logging.raiseExceptions
    libraries = [
        (library, library.handlers[:], library.propagate)
        for library in map(logging.getLogger, logs.OWN_HANDLERS)
    ]
    yield
    faulthandler.unregister(signal.SIGUSR1)
    for library, handlers, propagates in libraries:
        library.handlers, library.propagate = handlers, propagates
    for handler in set(root.handlers) - set(handlers_before):
        handler.close()
    root.handlers, logging.raiseExceptions = handlers_before, raising
    root.setLevel(level)
    logging.captureWarnings(False)


def test_old_logs_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOG_BYTES", 1000)
    newest = logs.open_logs(tmp_path, rank=1)
    for number in range(200):
        logging.getLogger("tristage").info("message %d", number)
    files = sorted(tmp_path.glob("rank1.log*"))
    assert len(files) == 1 + logs.OLD_LOGS
    assert all(log.stat().st_size <= 1000 for log in files)
    assert newest.read_text().endswith("message 199\n")
