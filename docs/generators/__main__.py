"""Writes the generated parts of README and of the pages of `docs/` again: python -m docs.generators"""

from __future__ import annotations

from docs.generators import ROOT, fill, pages
from pipeline.processes.streams import say

if __name__ == "__main__":
    for page in pages():
        old = page.read_text(encoding="utf-8")
        if (new := fill(old)) != old:
            page.write_text(new, encoding="utf-8")
            say(f"written: {page.relative_to(ROOT)}")
