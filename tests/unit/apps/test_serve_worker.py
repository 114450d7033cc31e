"""The thread of the models: what becomes of calls if it is closed."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from apps.serve.worker import Closed, Worker


def test_calls_that_wait_are_failed_although_one_was_cancelled() -> None:
    """Its client has gone. The thread must not die of it: others would wait for ever."""
    idle: Any = SimpleNamespace(step=lambda: False, running=0, waiting=0, clear=list)
    worker, begun, go_on = Worker(idle), threading.Event(), threading.Event()

    def busy() -> str:
        begun.set()
        go_on.wait(30)
        return "done"

    first = worker.call(busy)
    assert begun.wait(30)
    cancelled, waiting = worker.call(lambda: "never"), worker.call(lambda: "never")
    assert cancelled.cancel()
    threading.Timer(0.2, go_on.set).start()
    worker.close()
    assert first.result(timeout=30) == "done"
    with pytest.raises(Closed):
        waiting.result(timeout=30)
    with pytest.raises(Closed):
        worker.call(lambda: "late").result(timeout=30)
