"""What the report makes of `tristage check rm`: it answers for the reward model that was checked alone."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from configs.errors import UserError
from pipeline.reporting.reward_check import check_words
from pipeline.state.reward_check import RewardCheck, read_check


def figure(value, low, high, n=100):
    return {"value": value, "low": low, "high": high, "n": n}


def checked(value, verdict=""):
    return {"accuracy": figure(value, value - 0.05, value + 0.05), "verdict": verdict}


VARIANTS = {
    "25 %": checked(0.6),
    "50 %": checked(0.65),
    "all": checked(0.7, "as it should be"),
    "shuffled": checked(0.5, "as it should be"),
    "negated": checked(0.3, "as it should be"),
}


def words(gain=None, variants=VARIANTS, of="abc", finished=True, **changes):
    fields = {
        "reward_model": "abc",
        "prompts": 400,
        "prompts_of_run": 400,
        "variants": variants,
        "gain": gain,
    }
    manifest = SimpleNamespace(output=SimpleNamespace(sha256=of))
    results: Any = SimpleNamespace(
        check=RewardCheck.model_validate(fields | changes),
        manifests={"rm": manifest},
        finished=lambda stage: finished,
    )
    return " ".join(check_words(results))


@pytest.mark.parametrize(
    ("gain", "changes", "answer"),
    [
        (
            figure(0.05, 0.01, 0.09),
            {},
            "Trained on enough? No: of the rankings of 400 prompts, a quarter gives",
        ),
        (
            figure(0.05, 0.01, 0.09),
            {},
            "0.600 [0.550, 0.650], a half 0.650 [0.600, 0.700], all 0.700 [0.650, 0.750].",
        ),
        (figure(0.05, 0.01, 0.09), {}, "it gains 0.0500 [0.0100, 0.0900]. More rankings help."),
        (figure(0.00, -0.02, 0.03), {}, "Trained on enough? Yes: "),
        (figure(0.03, -0.02, 0.08), {}, "Trained on enough? Not clear: "),
        (figure(0.10, 0.05, 0.15, n=8), {}, "Trained on enough? Not clear, 8 held-out prompts are too few"),
        (
            figure(0.10, 0.05, 0.15),
            {"prompts_of_run": 1600},
            "Not clear, the check took a part of the prompts",
        ),
        (figure(0.00, -0.02, 0.03), {"prompts_of_run": 1600}, "Trained on enough? Yes: "),
        (None, {}, "Trained on enough? tristage check rm --curve trains it"),
    ],
)
def test_trained_on_enough(gain, changes, answer):
    assert answer in words(gain, **changes)


@pytest.mark.parametrize(
    ("verdict", "answer"),
    [
        ("as it should be", "Yes"),
        ("too few prompts to tell", "Too few prompts to tell"),
        ("not as it should be (0.5: nothing to learn)", "Not as it should"),
    ],
)
def test_changed_rankings_say_whether_it_learns(verdict, answer):
    said = words(variants=VARIANTS | {"shuffled": checked(0.5, verdict)})
    assert f"Does it learn from the labels? {answer}: " in said
    assert f"shuffled rankings give 0.500 [0.450, 0.550], {verdict}; negated rankings give 0.300 " in said


@pytest.mark.parametrize("other", [{"of": "another"}, {"finished": False}, {"reward_model": ""}])
def test_a_check_of_another_reward_model_says_nothing(other):
    said = words(figure(0.05, 0.01, 0.09), **other)
    assert said.startswith("Trained on enough? tristage check rm --curve") and "learn" not in said


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"variants": 3}'])
def test_a_damaged_check_is_named(tmp_path, content):
    assert read_check(tmp_path) is None
    (tmp_path / "check").mkdir()
    (tmp_path / "check/rm.json").write_text(content)
    with pytest.raises(UserError, match=r"check/rm\.json: damaged .*run tristage check rm again"):
        read_check(tmp_path)


def test_a_gain_without_its_curve_is_damage(tmp_path):
    (tmp_path / "check").mkdir()
    one = {"reward_model": "", "prompts": 4, "prompts_of_run": 4, "gain": figure(0, 0, 0)}
    (tmp_path / "check/rm.json").write_text(json.dumps(one | {"variants": {"all": checked(0.5)}}))
    with pytest.raises(UserError, match="a gain, but not the accuracies"):
        read_check(tmp_path)
