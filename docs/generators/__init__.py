"""The generated parts of pages: a module for each kind, a function for each part, from code to Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable

from docs.generators.command_line import command_line
from docs.generators.configuration import configuration
from docs.generators.evidence import evidence
from docs.generators.recipes import recipes
from docs.generators.warnings import warnings

MARKER = re.compile(r"^<!-- generated: (\S+)(?: (\S+))? -->$", re.MULTILINE)
GENERATORS: dict[str, Callable[..., str]] = {
    "command-line": command_line,
    "configuration": configuration,
    "evidence": evidence,
    "recipes": recipes,
    "warnings": warnings,
}


def fill(page: str) -> str:
    """The page with generated Markdown in place of each marker.

    Raises:
        KeyError: a marker names no generator, or a table of evidence that has no record.
    """
    return MARKER.sub(lambda marker: GENERATORS[marker[1]](*filter(None, [marker[2]])), page)
