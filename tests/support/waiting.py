"""Wait for what happens in another thread or process."""

from __future__ import annotations

import time
from collections.abc import Callable

SECONDS = 30  # for what should happen soon


def until(happened: Callable[[], object]) -> None:
    """Wait until `happened()` is true."""
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)
