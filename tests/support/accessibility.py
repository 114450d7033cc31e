"""What axe-core, a reference of its own, finds wrong with a page for people with disabilities."""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}


def violations(page: Page) -> list[str]:
    """Each broken rule of WCAG 2.1, levels A and AA, with the elements that break it."""
    found = Axe().run(page, options=RULES).response["violations"]
    return [
        f"{rule['id']}: {node['html']} {node['failureSummary']}" for rule in found for node in rule["nodes"]
    ]
