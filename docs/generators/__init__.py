"""The generated parts of pages: a module for each kind, a function for each part, from code to Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable

MARKER = re.compile(r"^<!-- generated: (\S+) -->$", re.MULTILINE)
GENERATORS: dict[str, Callable[[], str]] = {}


def fill(page: str) -> str:
    """The page with generated Markdown in place of each marker.

    Raises:
        KeyError: a marker names no generator.
    """
    return MARKER.sub(lambda marker: GENERATORS[marker[1]](), page)
