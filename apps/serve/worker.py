"""The one thread that uses the models. Requests give it answers to decode, and batches to score."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from apps.answers.answer import Answer, Piece
from apps.answers.decoder import Decoder

logger = logging.getLogger("tristage")
Result = TypeVar("Result")
FAILED, CLOSING = Piece("", [], failed="failed"), Piece("", [], failed="closing")


class Closed(Exception):
    """The worker was closed before it came to a call."""


class Worker:
    """Decodes until it is closed. Its methods may be called from any thread.

    Attributes:
        running, waiting: the number of answers with and without a row, after the last step.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._changed = threading.Condition()
        self._arrived, self._calls = list[Answer](), deque[tuple[Future[Any], Callable[[], Any]]]()
        self._closed = self._more = False
        self.running = self.waiting = 0
        self._thread = threading.Thread(target=self._work, name="models", daemon=True)
        self._thread.start()

    def add(self, answers: Sequence[Answer]) -> None:
        """Decode answers. Their `deliver` is called in the worker's thread."""
        with self._changed:
            if not self._closed:
                self._arrived += answers
                self._changed.notify()
                return
        _deliver(CLOSING, answers)

    def call(self, function: Callable[[], Result]) -> Future[Result]:
        """The result of `function`, which uses the models. It runs between two steps of decoding."""
        future = Future[Result]()
        with self._changed:
            if self._closed:
                future.set_exception(Closed())
            else:
                self._calls.append((future, function))
                self._changed.notify()
        return future

    def close(self) -> None:
        """Fail what is in progress, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                if self._closed:
                    break
                arrived, self._arrived = self._arrived, []
                call = self._calls.popleft() if self._calls else None
            for answer in arrived:
                self._decoder.add(answer)
            if call:
                _run(*call)
            self._more = self._step()
            self.running, self.waiting = self._decoder.running, self._decoder.waiting
        _deliver(CLOSING, [*self._decoder.clear(), *self._arrived])
        for future, _ in self._calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(Closed())

    def _has_work(self) -> bool:
        return bool(self._more or self._arrived or self._calls or self._closed)

    def _step(self) -> bool:
        """One step of decoding. An error fails all answers in progress, and later ones are decoded."""
        try:
            return self._decoder.step()
        except Exception:
            logger.exception("decoding failed")
            _deliver(FAILED, self._decoder.clear())
            return False


def _deliver(piece: Piece, answers: Sequence[Answer]) -> None:
    for answer in answers:
        answer.deliver(piece)


def _run(future: Future[Any], function: Callable[[], Any]) -> None:
    """Give `future` the result of `function`, unless nobody waits for it any more."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except Exception as error:
        future.set_exception(error)
