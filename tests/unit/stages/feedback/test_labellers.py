"""The labellers: which answers they prefer, and how scores become ranks."""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from configs.errors import UserError
from stages.distributed.ranks import Ranks
from stages.feedback.judgements import Judgement
from stages.feedback.labellers import labeller, warmth
from stages.maths.statistics import repeated_bigrams
from tests.support.roles import CPU

ALONE = Ranks(0, 1, CPU)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("happy", 0.0),
        ("so happy", 0.0),
        ("the cat saw the dog", 0.0),  # a word may come again, a pair may not
        ("so happy so happy", 1 / 3),  # so-happy, happy-so, so-happy: 3 pairs, 2 different
        ("So HAPPY so\nhappy", 1 / 3),  # case and white space are nothing
        ("ha ha ha ha ha", 0.75),  # 4 pairs, 1 different
        ("a b a b a", 0.5),  # a-b, b-a, a-b, b-a
    ],
)
def test_repeated_bigrams_by_hand(text, share):
    assert repeated_bigrams(text) == pytest.approx(share)


def test_repetition_tends_to_one_and_never_reaches_it():
    assert [repeated_bigrams("joy " * n) for n in (2, 11, 101)] == pytest.approx([0, 0.9, 0.99])


def test_warmth_prefers_the_warm_answer():
    warm = "I'm so sorry to hear that. You have great friends who love you, and I believe in you!"
    plain = "The office opens at nine."
    cold = "That is a terrible and stupid failure, and nobody likes you."
    assert 1 >= warmth(warm) > 0.8
    assert warmth(plain) == 0.0
    assert -1 <= warmth(cold) < -0.5


def test_warmth_is_vaders_compound_score_by_hand():
    # "great" is 3.1 in VADER's lexicon: 3.1 / sqrt(3.1 ** 2 + 15) = 0.6249
    assert warmth("great") == pytest.approx(0.6249)
    # "great" three times: 2 pairs, 1 different; 9.3 / sqrt(9.3 ** 2 + 15) = 0.9231, less 3 * 1/2
    assert warmth("great great great") == pytest.approx(0.9231 - 1.5)


def test_warmth_is_not_fooled_by_a_collapsed_policy():
    honest = "Thank you, I am glad to help."
    assert warmth("love love love love love love") < 0 < warmth(honest)
    assert warmth("You are great! You are great! You are great!") < warmth(honest)


class OtherRank(Ranks):
    """A rank that gets nothing from rank 0."""

    def from_rank_0(self, make: Any) -> Any:
        return []


@pytest.fixture
def judge_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("my_judge")
    monkeypatch.setitem(sys.modules, "my_judge", module)
    return module


def test_ours_goes_by_its_name() -> None:
    assert labeller("warmth", "ppo.judge", ALONE)(["p"], ["great"]) == [Judgement(warmth("great"))]


def test_the_users_own_is_given_prompts_and_answers_on_rank_0_alone(judge_module: ModuleType) -> None:
    calls: list[dict[str, list[str]]] = []

    def judge(**texts: list[str]) -> list[Any]:
        calls.append(texts)
        return [torch.tensor(0.5), 2]

    vars(judge_module)["judge"] = judge
    prompts, answers = ["p", "q"], ["a", "b"]
    assert labeller("my_judge:judge", "ppo.judge", ALONE)(prompts, answers) == [
        Judgement(0.5),
        Judgement(2.0),
    ]
    assert labeller("my_judge:judge", "ppo.judge", OtherRank(1, 2, CPU))(prompts, answers) == []
    assert calls == [{"prompts": prompts, "completions": answers}]


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("my_judge:judge", [1.0], "must give a number for each of 2"),
        ("my_judge:judge", [1.0, "x"], r"gave 'x' for completions\[1\]"),
        ("my_judge:judge", [1.0, math.nan], r"gave nan for completions\[1\]"),
        ("my_judge:jury", [], "the module 'my_judge' has no function 'jury'"),
        ("no_judge:judge", [], "cannot import 'no_judge'"),
    ],
)
def test_a_judge_that_is_none_is_refused(
    judge_module: ModuleType, name: str, values: list, reason: str
) -> None:
    vars(judge_module)["judge"] = lambda prompts, completions: values
    with pytest.raises(UserError, match=f"ppo.judge: .*{reason}"):
        labeller(name, "ppo.judge", ALONE)(["p", "q"], ["a", "b"])
