"""The generated parts of pages: a module for each kind, a function for each part, from code to Markdown.

`python -m docs.generators` writes the parts again. A page marks each part:

    <!-- generated: evidence benchmarks/cpu -->
    …
    <!-- end -->
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from docs.generators.command_line import command_line
from docs.generators.configuration import configuration
from docs.generators.evidence import evidence
from docs.generators.hardware import hardware
from docs.generators.layers import layers
from docs.generators.recipes import recipes
from docs.generators.sections import keys, questions
from docs.generators.warnings import warnings

ROOT = Path(__file__).resolve().parents[2]
PART = re.compile(
    r"^(?P<begin><!-- generated: (?P<name>\S+)(?: (?P<of>\S+))? -->)\n.*?^(?P<end><!-- end -->)$",
    re.MULTILINE | re.DOTALL,
)
GENERATORS: dict[str, Callable[..., str]] = {
    "command-line": command_line,
    "configuration": configuration,
    "evidence": evidence,
    "hardware": hardware,
    "keys": keys,
    "layers": layers,
    "questions": questions,
    "recipes": recipes,
    "warnings": warnings,
}


def fill(page: str) -> str:
    """The page with each generated part written again.

    Raises:
        KeyError: a marker names no generator, or a table of evidence that has no record.
    """
    return PART.sub(_written, page)


def pages() -> list[Path]:
    """README, CONTRIBUTING and the pages of `docs/`."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _written(part: re.Match[str]) -> str:
    generated = GENERATORS[part["name"]](*filter(None, [part["of"]])).strip()
    return f"{part['begin']}\n\n{generated}\n\n{part['end']}"
