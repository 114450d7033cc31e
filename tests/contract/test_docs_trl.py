"""docs/coming-from/trl.md names arguments that the installed TRL has."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from tests.support.docs_pages import text_of


@pytest.mark.parametrize("name", ["SFTConfig", "RewardConfig"])
def test_the_arguments_of_its_trainers_exist(name: str) -> None:
    import trl

    section = text_of("coming-from/trl.md").partition(f"## {name}\n")[2].partition("\n## ")[0]
    named = {
        key
        for line in section.splitlines()
        for key in re.findall(r"`(\w+)`", line.partition("|")[2].partition("|")[0])
    }
    config: Any = {"SFTConfig": trl.SFTConfig, "RewardConfig": trl.RewardConfig}[name]
    assert named and named <= {field.name for field in dataclasses.fields(config)}
