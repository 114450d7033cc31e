"""Standard output and standard error: they show no secret, and end no training if nobody reads them."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, TextIO

from configs.safe_text import redacted, safe

logger = logging.getLogger("tristage")


class SafeStream:
    """A text stream without known secrets. Once it fails (a closed pipe, a full disk), it writes nothing.

    Everything but writing is that of the stream inside.
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name
        self._failed = False

    def write(self, text: str) -> int:
        try:
            self._stream.write(redacted(text))
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, error: OSError) -> None:
        """Send what is in buffers, and all that follows, nowhere. Python's own last flush then works."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        if not self._failed:
            self._failed = True
            logger.info("%s cannot be written (%s); from here on it is dropped", self._name, error)


def protect_streams() -> None:
    """Put a SafeStream in place of standard output and standard error. Call once, before anything prints."""
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:  # the shell closed it; the next file that is opened would take its number
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__"):
            stream.reconfigure(errors="backslashreplace")
        if not isinstance(stream, SafeStream):
            setattr(sys, name, SafeStream(stream, f"standard {'output' if name == 'stdout' else 'error'}"))


def say(message: str, *, error: bool = False) -> None:
    """Print a line for a person."""
    print(safe(message), file=sys.stderr if error else sys.stdout, flush=True)
