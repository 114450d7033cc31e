"""A page of plain blocks, and its rendering as Markdown or HTML. Text is escaped in both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import ClassVar, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from configs.safe_text import visible
from data.storage.files import write_text
from pipeline.terminal.format import show_known

TEMPLATES = Path(__file__).parent / "templates"
MAX_QUOTE = 700
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
    """An image file beside the page. `alt` describes it to readers who cannot see it."""

    file: str
    alt: str
    kind: ClassVar[str] = "picture"


@dataclass(frozen=True)
class Cell:
    """Text of a table cell, with an optional note under it."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Tiles:
    """The most important figures: (label, figure with note)."""

    items: list[tuple[str, Cell]]
    kind: ClassVar[str] = "tiles"


@dataclass(frozen=True)
class Table:
    """Rows of cells under `columns`. Cells of the layout "prose" are stacked on a narrow screen."""

    columns: list[str]
    rows: list[list[Cell]]
    layout: Literal["figures", "prose"] = "figures"
    kind: ClassVar[str] = "table"


Block = Paragraph | Bullets | Picture | Tiles | Table


@dataclass(frozen=True)
class Section:
    """A titled part of the page. `tone` sets the colour of its border in HTML."""

    title: str
    blocks: list[Block]
    tone: Literal["plain", "warning", "good", "missing"] = "plain"


@dataclass(frozen=True)
class Page:
    title: str
    subtitle: str
    sections: list[Section]


def figure_cells(known: Mapping[str, float]) -> list[Cell]:
    """A figure, its interval, and the number of values behind it: three cells."""
    shown = show_known(known)
    return [Cell(shown.value), Cell(shown.bounds), Cell(f"{known['n']:.0f}")]


def quote(text: object, max_length: int = MAX_QUOTE) -> str:
    """Text of a model or a data set, made safe to show: control characters visible, long text cut."""
    shown = visible(str(text))
    if len(shown) <= max_length:
        return shown
    return f"{shown[:max_length].rstrip()} … [{len(shown) - max_length} more characters]"


def markdown(text: str) -> str:
    """Escape `text` for one line of Markdown or a table cell. A line break becomes <br>."""
    return _MARKDOWN.sub(r"\\\1", escape(text, quote=False)).replace("\n", "<br>")


def render(page: Page, form: Literal["md", "html"]) -> str:
    """Render the page as Markdown or HTML."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=form == "html",
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["markdown"] = markdown
    return visible(environment.get_template(f"report.{form}.jinja").render(page=page))


def write_page(page: Page, folder: Path, markdown_name: str = "report", html_name: str = "index") -> Path:
    """Write the page into `folder`, as Markdown and as HTML. Returns the path of the latter."""
    write_text(folder / f"{markdown_name}.md", render(page, "md"))
    html = folder / f"{html_name}.html"
    write_text(html, render(page, "html"))
    return html
