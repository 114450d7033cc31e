"""Pieces of Markdown: escaped text, code, tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

SPECIAL = re.compile(r"([\\`*_|\[\]#<>{}])")


def text(plain: str) -> str:
    """`plain` escaped for one line of Markdown or a table cell."""
    return _escaped(" ".join(plain.split()))


def prose(written: str) -> str:
    """Text on one line, escaped but for its `code`."""
    parts = " ".join(written.split()).split("`")
    return "".join(code(part) if number % 2 else _escaped(part) for number, part in enumerate(parts))


def _escaped(plain: str) -> str:
    return SPECIAL.sub(r"\\\1", plain).replace(r"\<", "&lt;").replace(r"\>", "&gt;")


def code(plain: str) -> str:
    """Inline code. Bars in it do not end a table's cell."""
    return f"`{plain}`"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
