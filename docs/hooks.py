"""MkDocs calls this: it writes the generated parts of pages again, so that a site is never stale."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `mkdocs` does not look into its own folder

from docs.generators import fill


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page, as `python -m docs.generators` would write it."""
    return fill(markdown)
