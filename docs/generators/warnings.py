"""The warnings of a report, from the rules themselves."""

from __future__ import annotations

import re

from docs.generators.markdown import prose, text
from pipeline.reporting.warnings import RULES, Rule

FIGURE = re.compile(r"\{(\w+)\}")
ADDITION = re.compile(r"(?<=[a-z.])\{\w+\}")  # a figure right behind a word is text that is seldom there


def warnings() -> str:
    """A section for each rule: when it warns, what it says, and what to do."""
    return "\n\n".join(map(_section, RULES))


def _section(rule: Rule) -> str:
    parts = [f"## {_title(rule)}", f"**Warns if:** {text(rule.condition)}"]
    parts.append(f"> {_with_figures(rule.message)}")
    if rule.remedy:
        parts.append(f"**What to do:** {_with_figures(rule.remedy)}")
    return "\n\n".join(parts)


def _title(rule: Rule) -> str:
    return rule.name.replace("-", " ").capitalize().replace("Sft", "SFT").replace("Kl ", "KL ")


def _with_figures(template: str) -> str:
    """The text with the names of its figures in italics."""
    named = FIGURE.sub(lambda figure: f"`{figure[1].replace('_', ' ')}`", ADDITION.sub("", template))
    return re.sub("`([^`]*)`", r"*\1*", prose(named))
