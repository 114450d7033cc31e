"""SIGINT and SIGTERM: at which of them a stage ends at once, and which lets it finish the step in hand."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from stages.context import Interrupted

WATCHED = (signal.SIGINT, signal.SIGTERM)
# Ctrl-C reaches a rank twice, from the terminal and from the launcher, which passes it on as SIGTERM. What
# comes later than this after the first is a person's second.
SECONDS_TO_REPEAT = 1.5


class Signals:
    """The signals of this process: the first ends it by Interrupted, or is only noted where that is deferred.

    A second ends it wherever it is, and those after that are ignored: they must not disturb the writing of
    the manifest.
    """

    def __init__(self) -> None:
        self.announce = False  # say at the terminal that a signal was noted; for one rank alone
        self._deferring = self._second = self._ended = False
        self._noted = 0

    @contextmanager
    def deferred(self) -> Iterator[Callable[[], int]]:
        """Within, the first signal is noted; yields what tells its number, 0 as long as there is none."""
        self._deferring = True
        try:
            yield lambda: self._noted
        except Interrupted:
            self._ended = True
            raise
        finally:
            self._deferring = False
        if self._noted:
            self._end(self._noted)

    def handle(self, signum: int, _frame: FrameType | None) -> None:
        """The handler, which Python calls in the main thread once that is between two operations."""
        if self._deferring and not self._second:
            self._noted = self._noted or signum
        elif not self._ended:
            self._end(signum)

    def listen(self, arrivals: socket.socket) -> None:
        """Find out which signal is a second, by when it arrives.

        In a thread of its own: the main thread may be in the middle of a long operation, and would learn of
        the launcher's signal so late that it seemed to be another.
        """
        first = 0.0
        while arrived := arrivals.recv(1):
            if arrived[0] not in WATCHED:
                continue
            if not first:
                first = time.monotonic()
                self._say_noted()
            elif time.monotonic() - first > SECONDS_TO_REPEAT:
                self._second = True
                os.kill(os.getpid(), arrived[0])  # the handler may have been called before this was known
                return

    def _end(self, signum: int) -> None:
        self._ended = True
        raise Interrupted(signum)

    def _say_noted(self) -> None:
        """Without the signal's name: of two that come together, the later may be announced first."""
        if self.announce and self._deferring:
            print(
                "interrupted: ends after the step in hand, with a checkpoint; a second time ends it at once",
                file=sys.stderr,
                flush=True,
            )


@contextmanager
def watched_signals() -> Iterator[Signals]:
    """Have SIGINT and SIGTERM handled by the Signals that this yields."""
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
    """Have SIGINT and SIGTERM handled by `handler`, one of signal.signal's, and then as before."""
    before = {each: signal.signal(each, handler) for each in WATCHED}
    try:
        yield
    finally:
        for each, earlier in before.items():
            signal.signal(each, earlier)
