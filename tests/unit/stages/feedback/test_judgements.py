"""What a labeller may return: numbers, or mappings with a score and its parts."""

from __future__ import annotations

import math
from typing import Any

import pytest

from configs.errors import UserError
from stages.feedback.judgements import Judgement, as_judgements, by_name

ANSWERS = ["a", "b"]


def test_numbers_are_scores_without_parts() -> None:
    assert as_judgements([1, 2.5], ANSWERS, "mine") == [Judgement(1.0), Judgement(2.5)]


def test_a_mapping_has_the_score_and_its_parts() -> None:
    values = [{"warmth": 1, "score": 0.5}, {"score": -1, "warmth": 0}]
    expected = [Judgement(0.5, {"warmth": 1.0}), Judgement(-1.0, {"warmth": 0.0})]
    assert as_judgements(values, ANSWERS, "mine") == expected
    assert by_name("gold", expected) == {"gold": [0.5, -1.0], "gold_warmth": [1.0, 0.0]}
    assert by_name("gold", []) == {}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([{"score": 1}], "must give a number for each of 2"),
        ([{"score": 1}, 2.0], r"gave 2.0 for completions\[1\]"),
        ([2.0, {"score": 1}], r"gave 2.0 for completions\[0\]"),
        ([{"score": 1, "a": 1}, {"score": 1}], r"completions\[1\], 'b'. .* same names .*: score, a"),
        ([{"score": 1}, {"score": math.nan}], r"'score', gave nan for completions\[1\]"),
        ([{"score": 1, "a": "x"}, {"score": 1, "a": 1}], r"'a', gave 'x' for completions\[0\]"),
        ([{"a": 1}, {"a": 1}], "no 'score'"),
        ([{"score": 1, "my part": 1}] * 2, "the name 'my part'"),
        ([{"score": 1, 3: 1}] * 2, "the name 3"),
        ({"score": 1}, "gave a dict"),
    ],
)
def test_what_is_neither_is_refused(values: Any, reason: str) -> None:
    with pytest.raises(UserError, match=f"mine.*{reason}"):
        as_judgements(values, ANSWERS, "mine")
