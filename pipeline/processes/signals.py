"""SIGINT and SIGTERM: the first lets a stage finish its current step, the second ends it at once."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pipeline.processes.streams import say
from stages.context import Interrupted

WATCHED = (signal.SIGINT, signal.SIGTERM)
# Ctrl-C reaches a rank twice: from the terminal, and from the launcher as SIGTERM. A signal that comes later
# than this after the first is a second one by a person.
SECONDS_TO_REPEAT = 1.5


class Signals:
    """The signals of this process: the first raises Interrupted, or is only noted while that is deferred.

    A second signal raises Interrupted anywhere. Later ones are ignored: they must not disturb the writing of
    the manifest.
    """

    def __init__(self) -> None:
        self.announce = False  # print that a signal was noted; one rank does
        self.arrived = False
        self.over = False  # no signal raises any more
        self._deferring = self._second = False
        self._noted = 0

    @contextmanager
    def deferred(self) -> Iterator[Callable[[], int]]:
        """Note the first signal in place of raising. Yields a function that returns its number, or 0."""
        self._deferring = True
        try:
            yield lambda: self._noted
        except Interrupted:
            self.over = True
            raise
        finally:
            self._deferring = False
        if self._noted:
            self._end(self._noted)

    def handle(self, signum: int, _frame: FrameType | None) -> None:
        """The handler. Python calls it in the main thread, between two operations."""
        if self._deferring and not self._second:
            self._noted = self._noted or signum
        elif not self.over:
            self._end(signum)

    def listen(self, arrivals: socket.socket) -> None:
        """Tell a second signal from the first by its arrival time.

        This runs in its own thread. The main thread may be in a long operation, and would see the launcher's
        copy of the first signal so late that it would take it for a second one.
        """
        first = 0.0
        while arrived := arrivals.recv(1):
            if arrived[0] not in WATCHED:
                continue
            if not first:
                first, self.arrived = time.monotonic(), True
                self._announce_first()
            elif time.monotonic() - first > SECONDS_TO_REPEAT:
                self._second = True
                os.kill(os.getpid(), arrived[0])  # the handler may have been called before this was known
                return

    def _end(self, signum: int) -> None:
        self.over = True
        raise Interrupted(signum)

    def _announce_first(self) -> None:
        """Print no name: of two signals that arrive together, the later may be announced first."""
        if self.announce and self._deferring:
            say(
                "interrupted: ends after the current step, with a checkpoint; interrupt again to end at once",
                error=True,
            )


@contextmanager
def watched_signals() -> Iterator[Signals]:
    """Let the yielded Signals handle SIGINT and SIGTERM."""
    signals = Signals()
    arrivals, wire = socket.socketpair()
    wire.setblocking(False)
    wire_before = signal.set_wakeup_fd(wire.fileno(), warn_on_full_buffer=False)
    listener = threading.Thread(target=signals.listen, args=(arrivals,), daemon=True)
    listener.start()
    try:
        with handled_by(signals.handle):
            yield signals
    finally:
        signal.set_wakeup_fd(wire_before)
        wire.close()
        listener.join()
        arrivals.close()


@contextmanager
def handled_by(handler: Any) -> Iterator[None]:
    """Let `handler` (see `signal.signal`) handle SIGINT and SIGTERM."""
    before = {signum: signal.signal(signum, handler) for signum in WATCHED}
    try:
        yield
    finally:
        for signum, earlier in before.items():
            signal.signal(signum, earlier)
