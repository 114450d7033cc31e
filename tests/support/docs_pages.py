"""The pages of `docs/`: their fenced blocks, the keys and metrics in backticks, the rows of their tables."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(r'^( *)```(\w*)(?: title="(\w+)")?\n(.*?)^\1```', re.DOTALL | re.MULTILINE)
SECTIONS = "base|adapter|data|sft|rm|ppo|best|tracking|deepspeed"
KEY = re.compile(rf"`((?:{SECTIONS})\.[a-z_][\w.]*)(?:[=:][^`]*)?`")
METRIC = re.compile(r"`((?:objective|policy|val|loss|rollout|completions|eval|time|perf)/[a-z_]+)`")


@dataclass(frozen=True)
class Block:
    """One fenced block: the page, its language, its title or "", and the text between the fences."""

    page: str
    language: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text.strip().splitlines()[0]:.40}"


def pages() -> list[Path]:
    return sorted(DOCS.rglob("*.md"))


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def blocks(language: str, *names: str) -> list[Block]:
    """The blocks of a language on the named pages, or on all."""
    chosen = [DOCS / name for name in names] or pages()
    return [
        Block(str(page.relative_to(DOCS)), found[2], found[3] or "", found[4])
        for page in chosen
        for found in FENCE.finditer(page.read_text(encoding="utf-8"))
        if found[2] == language
    ]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def table(page: str, first_header: str) -> list[list[str]]:
    """The rows of the table whose first column has this header: its cells, stripped."""
    lines = text_of(page).splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"| {first_header} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
    return rows
