"""The reference of the command line has every command and option."""

import re

import pytest

from configs.schema import ALL_STAGES
from docs.generators.command_line import command_line
from tests.support.docs_pages import DOCS

SECTIONS = dict(
    re.findall(r"^## `tristage (\w+)`.*?$(.*?)(?=^## |\Z)", command_line(), re.MULTILINE | re.DOTALL)
)


def test_every_command_has_a_section_with_its_example():
    assert SECTIONS.keys() >= {"run", "sweep", "plan", "status", "report"}
    for name, section in SECTIONS.items():
        assert f"`tristage {name} [OPTIONS]" in section
        assert re.search(rf"^```sh\ntristage {name}\b", section, re.MULTILINE)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            "run",
            ["FILE key=value", "--config FILE", "--run-dir DIR", "--force", "--fresh", "--from <sft|rm|ppo>"],
        ),
        ("sweep", ["--seeds N", "--jobs N", "--num-accelerators N", "--hostfile FILE"]),
        ("status", ["--config FILE", "--run-dir DIR"]),
    ],
)
def test_every_option_has_a_row(command, options):
    for option in options:
        assert f"\n| `{option}` | " in SECTIONS[command]


def test_the_page_names_every_stage_of_run_stage():
    page = (DOCS / "reference" / "command-line.md").read_text(encoding="utf-8")
    assert all(f"`{stage}`" in page for stage in ALL_STAGES)
