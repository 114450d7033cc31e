"""MkDocs calls this: it writes the generated parts of pages, which `<!-- generated: NAME -->` marks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `mkdocs` does not look into its own folder

from docs.generators import fill


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each marker by the Markdown of its generator."""
    return fill(markdown)
