"""docs/guides/functions.md: the functions on the page are those that a stage would import and call."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from configs.load import load_experiment
from pipeline.planning.faults import Faults
from pipeline.planning.stage_checks import run_preflight
from stages.feedback.user_functions import as_numbers, load_function
from stages.preflight import COMPLETIONS, PROMPTS
from tests.contract.bad_inputs.entry import experiment
from tests.support.docs_pages import blocks

PAGE = "guides/functions.md"
MODULES = {block.text.splitlines()[0].removeprefix("# "): block.text for block in blocks("python", PAGE)}
MOST_LINES = 20


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's modules, on the path of this process and of those that it starts."""
    for name, text in MODULES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_each_example_is_at_most_twenty_lines() -> None:
    assert set(MODULES) == {"my_labeller.py", "my_reward.py", "my_judge.py"}
    assert all(len(text.splitlines()) <= MOST_LINES for text in MODULES.values())


def test_the_stages_accept_what_the_page_configures(folder: Path) -> None:
    file = experiment(folder)
    given = yaml.safe_load(file.read_text()) | yaml.safe_load(blocks("yaml", PAGE)[0].text)
    file.write_text(yaml.safe_dump(given))
    config = load_experiment(file)
    assert len(config.users_code(["rm", "ppo"])) == 3
    faults = Faults()
    assert run_preflight(config, ["rm", "ppo"], faults, only_feedback=True) == []
    faults.refuse()


@pytest.mark.parametrize(
    ("path", "completion", "expected"),
    [
        ("my_labeller:polite", "Thank you, I am happy to help.", 2 - 7 / 20),
        ("my_labeller:polite", "", 0.0),
        ("my_reward:length", "One two three four five.", 0.0),
        ("my_reward:length", "One two.", -0.3),
        ("my_reward:length", "word " * 32, -0.2),
        ("my_judge:on_topic", "My garden is wet.", 0.5),
        ("my_judge:on_topic", "", 0.0),
    ],
)
def test_values_by_hand(folder: Path, path: str, completion: str, expected: float) -> None:
    (value,) = load_function(path, "key", as_numbers)(["Water my garden"], [completion])
    assert math.isclose(value, expected)


def test_the_page_says_what_is_tried_first() -> None:
    assert len(PROMPTS) == len(COMPLETIONS) == 2 and "" in COMPLETIONS
