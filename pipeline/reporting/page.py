"""A page as plain blocks of text, and its two forms: Markdown and HTML. Text is escaped in both."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import ClassVar, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).parent / "templates"
LONGEST_QUOTE = 700
_MARKDOWN = re.compile(r"([\\`*_~|\[\]$#]|:(?=//))")


@dataclass(frozen=True)
class Paragraph:
    text: str
    kind: ClassVar[str] = "paragraph"


@dataclass(frozen=True)
class Bullets:
    items: list[str]
    kind: ClassVar[str] = "bullets"


@dataclass(frozen=True)
class Picture:
    """A file beside the page; `alt` says what it shows to those who do not see it."""

    file: str
    alt: str
    kind: ClassVar[str] = "picture"


@dataclass(frozen=True)
class Cell:
    """Text of a table, with a short remark under it."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Tiles:
    """A few figures to be seen first: (label, figure with remark)."""

    items: list[tuple[str, Cell]]
    kind: ClassVar[str] = "tiles"


@dataclass(frozen=True)
class Table:
    """Rows of cells under `columns`; `layout` "prose" is for texts, which stack up on a narrow screen."""

    columns: list[str]
    rows: list[list[Cell]]
    layout: Literal["figures", "prose"] = "figures"
    kind: ClassVar[str] = "table"


Block = Paragraph | Bullets | Picture | Tiles | Table


@dataclass(frozen=True)
class Section:
    title: str
    blocks: list[Block]
    tone: Literal["plain", "warning", "good", "missing"] = "plain"


@dataclass(frozen=True)
class Page:
    title: str
    subtitle: str
    sections: list[Section]


def quote(text: object, longest: int = LONGEST_QUOTE) -> str:
    """Text that a model or a data set wrote, fit to be shown: control characters visible, cut if long."""
    shown = "".join(_visible(letter) for letter in str(text))
    if len(shown) <= longest:
        return shown
    return f"{shown[:longest].rstrip()} … [{len(shown) - longest} more characters]"


def _visible(letter: str) -> str:
    """Control characters as their pictures; marks that turn the direction of text around are taken out."""
    if letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cs", "Cf"):
        return letter
    return chr(0x2400 + ord(letter)) if ord(letter) < 0x20 else "\ufffd"


def markdown(text: str) -> str:
    """Escape for a line of Markdown, in a table or not: nothing in `text` is markup, a break is a <br>."""
    return _MARKDOWN.sub(r"\\\1", escape(text, quote=False)).replace("\n", "<br>")


def render(page: Page, form: Literal["md", "html"]) -> str:
    """The page in one of its two forms."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=form == "html",
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["markdown"] = markdown
    return environment.get_template(f"report.{form}.jinja").render(page=page)
