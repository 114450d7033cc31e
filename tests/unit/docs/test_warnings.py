"""The page of warnings has every rule of the report."""

import re

from docs.generators.warnings import warnings
from pipeline.reporting.warnings import RULES

PAGE = warnings()


def test_every_rule_has_a_section():
    assert len(RULES) >= 22
    slugs = {title.lower().replace(" ", "-") for title in re.findall("^## (.+)$", PAGE, re.MULTILINE)}
    assert slugs == {rule.name for rule in RULES}, "a link to a rule has its name"
    assert PAGE.count("**Warns if:**") == PAGE.count("\n> ") == len(RULES)


def test_figures_are_named_and_text_is_escaped():
    assert "> The KL *where* is *kl* nats per response, above *limit*." in PAGE
    assert r"**What to do:** Raise ppo.kl\_coef or stop earlier." in PAGE
    assert "\\{" not in PAGE and "{key}" not in PAGE
