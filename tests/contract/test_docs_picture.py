"""docs/images/overview.svg: well-formed, drawn for light and dark, and asking nobody else."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from stages.models.roles import Role
from tests.support.docs_pages import DOCS

PICTURE = (DOCS / "images" / "overview.svg").read_text(encoding="utf-8")
CLASSES = re.compile(r"\.([a-z]+) \{")


def test_it_names_the_roles_and_stages() -> None:
    texts = {element.text for element in ElementTree.fromstring(PICTURE).iter() if element.text}
    assert texts >= {Role.POLICY, Role.REFERENCE, "reward model", Role.CRITIC}
    assert texts >= {"1 · SFT", "2 · Reward model", "3 · PPO"}


def test_every_colour_has_a_dark_one() -> None:
    light, _, dark = PICTURE.partition("@media (prefers-color-scheme: dark)")
    assert set(CLASSES.findall(light)) == set(CLASSES.findall(dark)) != set()


def test_it_loads_nothing() -> None:
    assert not re.search(r"href|url\((?!#)|<script|@import", PICTURE)
