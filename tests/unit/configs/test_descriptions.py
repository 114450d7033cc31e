"""Every key of the schema says what it does, and every section says what it is."""

import pytest

from configs.error_messages import SCHEMA

SECTIONS = {"Experiment": SCHEMA} | SCHEMA["$defs"]
KEYS = [
    (section, key, node) for section, schema in SECTIONS.items() for key, node in schema["properties"].items()
]


def is_section(node):
    """A key that is always a section. An optional one says what it is by default."""
    return "$ref" in node


@pytest.mark.parametrize(
    ("section", "key", "node"), KEYS, ids=[f"{section}.{key}" for section, key, _ in KEYS]
)
def test_every_key_is_described(section, key, node):
    words = node.get("description", "").split()
    assert is_section(node) or len(words) >= 2, f"{section}.{key} needs a description"


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_is_described(section):
    assert SECTIONS[section].get("description"), f"{section} needs a docstring"


def test_there_are_the_keys_of_every_stage():
    assert {"Sft", "Rm", "Ppo", "Best", "Base", "Rollout"} <= SECTIONS.keys()
