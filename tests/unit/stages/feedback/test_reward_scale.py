"""The prompts on which the scale of the reward model is measured."""

from __future__ import annotations

from data.batches.tokenize import Ranking
from stages.feedback.reward_scale import asked


def ranking(prompt: str, source: str = "") -> Ranking:
    return Ranking(prompt, [1], [[2], [3]], [0, 1], source=source)


def test_the_scale_is_of_every_source() -> None:
    rankings = [*(ranking(f"a{i}", "a") for i in range(5)), *(ranking(f"b{i}", "b") for i in range(2))]
    assert [one.prompt for one in asked(rankings, 5)] == ["a0", "b0", "a1", "b1", "a2"]


def test_a_prompt_of_several_rankings_is_asked_once() -> None:
    rankings = [ranking("p"), ranking(" p\n"), ranking("q"), ranking("r")]
    assert asked(rankings, 2) == [rankings[0], rankings[2]]


def test_of_one_source_it_is_the_first_rankings() -> None:
    rankings = [ranking(f"p{i}") for i in range(4)]
    assert asked(rankings, 3) == rankings[:3] and asked(rankings, 9) == rankings
