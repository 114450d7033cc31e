"""Strings of rows, and answers as they follow their prompts."""

from __future__ import annotations

import pytest

from data.sources.text import after


@pytest.mark.parametrize(
    ("prompt", "answer", "joined"),
    [
        ("At noon he", "ate.", " ate."),
        ("At noon he ", "ate.", "ate."),
        ("At noon he\n", "ate.", "ate."),
        ("It was 3", "o'clock.", " o'clock."),
        ("He said", ", then left.", ", then left."),
        ("中午他", "吃了饭。", "吃了饭。"),
        ("At noon he", "", ""),
        ("", "Ate.", "Ate."),
    ],
)
def test_a_stripped_answer_follows_its_prompt(prompt: str, answer: str, joined: str) -> None:
    assert after(prompt, answer) == joined
