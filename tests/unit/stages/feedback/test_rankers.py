"""Who ranks: by scores, by a judge, and where two agree. Every rank gets the same labels."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import UserError
from configs.judge_file import judge_digest
from configs.schema import Agreement, Rankings
from stages.context import Context
from stages.distributed.ranks import Ranks
from stages.feedback.rankers import AgreeingRankers, Label, open_ranker
from tests.support.chat_stub import chat_stub
from tests.support.roles import CPU
from tests.unit.stages.feedback.test_endpoint_judge import ANSWERS, longer
from tests.unit.stages.feedback.test_evaluation import context_in


def context(folder: Path, labeller: Any, **changes: Any) -> Context:
    made = context_in(folder)
    rankings = Rankings(labeller=Agreement(agree=labeller) if isinstance(labeller, list) else labeller)
    config = made.config.model_copy(update={"rm": made.config.rm.model_copy(update={"rankings": rankings})})
    return replace(made, stage="rm", config=config, **changes)


def judge_file(folder: Path, url: str, more: str = "") -> str:
    file = folder / "judge.yaml"
    file.write_text(f"url: {url}\nmodel: m\ntemplate: '{{prompt}}|{{a}}|{{b}}'\nretries: 0\n{more}")
    return str(file)


class Fixed:
    """Gives labels that are known before."""

    def __init__(self, *labels: Sequence[int], **metrics: float) -> None:
        self._labels, self._metrics = [Label(ranks) for ranks in labels], metrics

    def rank(self, prompts, answers) -> list[Label]:
        return self._labels

    def metrics(self) -> dict[str, float]:
        return self._metrics

    def notes(self) -> list[str]:
        return list(self._metrics)


def test_a_function_ranks_by_its_scores(tmp_path):
    (label,) = open_ranker(context(tmp_path, "warmth")).rank(["p"], [["great", "It is.", "terrible"]])
    assert label.ranks == [0, 1, 2] and label.scores == pytest.approx([0.6249, 0.0, -0.4767], abs=1e-4)


ASKED: list[int] = []


def changing(prompts: list[str], completions: list[str]) -> list[float]:
    """Likes longer answers at first, and from the second call on likes those to "b" the other way round."""
    ASKED.append(len(completions))
    return [
        -len(text) if prompt == "b" and len(ASKED) > 1 else len(text)
        for prompt, text in zip(prompts, completions, strict=True)
    ]


def test_a_function_that_is_random_is_found_out(tmp_path):
    ASKED.clear()
    ranker = open_ranker(context(tmp_path, f"{__name__}:changing"))
    answers = [["long", "no"], ["long", "no"], ["same", "text"], ["long", "no"]]
    labels = ranker.rank(["a", "b", "c", "d"], answers)
    assert [label.ranks for label in labels] == [[0, 1], [0, 1], [0, 0], [0, 1]]  # the first scores count
    metrics = ranker.metrics()
    assert metrics["label_self_agreement"] == pytest.approx(2 / 3) and metrics["label_self_agreement_n"] == 3
    (note,) = ranker.notes()
    assert note.startswith("asked twice, the labeller orders 0.667") and note.endswith("alike (n = 3)")


def test_a_function_is_asked_again_about_some_prompts(tmp_path):
    ASKED.clear()
    ranker = open_ranker(context(tmp_path, f"{__name__}:changing"))
    ranker.rank(["a"] * 60, [["long", "no"]] * 60)
    assert ASKED == [120, 100]
    assert ranker.metrics()["label_self_agreement"] == 1 and ranker.notes() == []


def noisy(prompts: list[str], completions: list[str]) -> list[float]:
    """Prefers an answer by chance."""
    return [random.random() + float(torch.rand(())) for _ in completions]


def test_noise_is_another_when_a_function_is_asked_again_and_the_same_after_a_kill(tmp_path):
    first, resumed = (open_ranker(context(tmp_path, f"{__name__}:noisy")) for _ in range(2))
    asked = ["p"] * 40, [["a", "b", "c", "d"]] * 40
    assert first.rank(*asked) == resumed.rank(*asked)
    assert first.metrics() == resumed.metrics()
    assert 0.35 < first.metrics()["label_self_agreement"] < 0.65  # 240 pairs of coins


def tallest(prompts: list[str], completions: list[str]) -> list[float]:
    top = max(map(len, completions))  # raises for none
    return [len(text) / top for text in completions]


def test_a_function_is_not_asked_about_nothing(tmp_path):
    ranker = open_ranker(context(tmp_path, f"{__name__}:tallest"))
    assert ranker.rank(["p"], [["long", "no"]]) == [Label([0, 1], [1.0, 0.5])]
    assert ranker.rank([], []) == []


@pytest.mark.parametrize("labeller", ["warmth", [f"{__name__}:changing", "warmth"]])
def test_what_ships_and_each_of_two_labellers_are_asked_once(labeller, tmp_path):
    ASKED.clear()
    ranker = open_ranker(context(tmp_path, labeller))
    ranker.rank(["a"], [["great", "bad"]])
    assert len(ASKED) == isinstance(labeller, list)
    assert "label_self_agreement" not in ranker.metrics()


def test_a_judge_ranks_without_scores_and_keeps_its_replies(tmp_path):
    noted: list[str] = []
    with chat_stub(longer) as stub:
        given = context(tmp_path, judge_file(tmp_path, stub.url, "price: {input: 1, output: 2}"))
        ranker = open_ranker(given)
        assert ranker.rank(["p"], [ANSWERS]) == [Label([2, 0, 3, 1])]
        noted += ranker.notes()
        resumed = open_ranker(given)
        assert resumed.rank(["p"], [ANSWERS]) == [Label([2, 0, 3, 1])]
    assert len(stub.bodies) == 12
    assert (
        ranker.metrics()
        == resumed.metrics()
        == {
            "judge_requests": 12,
            "judge_unreadable": 0,
            "judge_prompt_tokens": 120,
            "judge_completion_tokens": 24,
            "judge_cost": pytest.approx(168e-6),
        }
    )
    assert noted == [
        "judge.yaml: 12 requests, 120 prompt tokens, 24 completion tokens, cost 0.000168; 0 replies were "
        "unreadable and count as ties"
    ]


def test_a_judge_is_asked_in_parts_whose_labels_are_in_order(tmp_path, monkeypatch):
    prompts = [str(number) for number in range(30)]
    answers = [["a" * (1 + (number + place) % 3) for place in range(3)] for number in range(30)]
    told: list[int] = []
    with chat_stub(longer) as stub:
        given = context(tmp_path, judge_file(tmp_path, stub.url, "concurrency: 2"))
        monkeypatch.setattr(given.tracker, "advance", told.append)
        labels = open_ranker(given).rank(prompts, answers)
    assert [
        [len(texts[rank]) for rank in map(list(label.ranks).index, range(3))]
        for label, texts in zip(labels, answers, strict=True)
    ] == [[3, 2, 1]] * 30
    assert told == [5] * 6  # 16 * 2 requests, six a prompt


class OtherRank(Ranks):
    """Rank 1, which is told what rank 0 knows."""

    told: list[Any] = []  # noqa: RUF012

    def from_rank_0(self, make: Any) -> Any:
        return self.told.pop(0)  # it makes nothing itself


def test_other_ranks_are_told_and_ask_nothing(tmp_path):
    OtherRank.told = [[[0, 1]], [[1, 0]], None]
    given = context(tmp_path, judge_file(tmp_path, "http://127.0.0.1:9/"), ranks=OtherRank(1, 2, CPU))
    assert open_ranker(given).rank(["p", "q"], [["a", "b"]] * 2) == [Label([0, 1]), Label([1, 0])]


def test_a_file_that_changed_since_the_plan_is_refused(tmp_path):
    file = judge_file(tmp_path, "http://127.0.0.1:9/")
    planned = {"rm.rankings.labeller": judge_digest(Path(file)) or ""}
    open_ranker(context(tmp_path, file, sources=planned))
    judge_file(tmp_path, "http://127.0.0.1:9/", "max_tokens: 99")
    with pytest.raises(UserError, match=r"judge.yaml changed while the stage was starting"):
        open_ranker(context(tmp_path, file, sources=planned))


# Two that agree

TEXTS = ["a", "b", "c", "d"]


def test_answers_that_both_order_alike_are_kept():
    ranker = AgreeingRankers(
        Fixed([0, 1, 2, 3], [0, 0, 1, 1], [0, 1, 2, 3]), Fixed([1, 0, 2, 3], [0, 0, 2, 2], [3, 2, 1, 0])
    )
    labels = ranker.rank(["p", "q", "r"], [TEXTS] * 3)
    assert labels[0].ranks in ([0, None, 1, 2], [None, 0, 1, 2])
    assert labels[1] == Label([0, 0, 1, 1])
    assert labels[2] == Label([None] * 4)
    metrics = ranker.metrics()
    assert metrics["label_agreement"] == pytest.approx((5 / 6 + 1 + 0) / 3)
    assert metrics["label_agreement_low"] <= metrics["label_agreement"] <= metrics["label_agreement_high"]
    assert (metrics["label_agreement_n"], metrics["label_prompts_dropped"]) == (3, 1)
    assert metrics["label_answers_dropped"] == 1 + 4
    (note,) = ranker.notes()
    assert note.startswith("the two labellers order 0.611 [") and "(n = 3)" in note
    assert note.endswith("kept 7 of 12 answers and 2 of 3 prompts")


def test_answers_that_only_tie_are_dropped():
    ranker = AgreeingRankers(Fixed([0, 0, 0, 1]), Fixed([1, 1, 1, 0]))
    assert ranker.rank(["p"], [TEXTS]) == [Label([None] * 4)]


def test_equal_texts_say_nothing_of_agreement():
    ranker = AgreeingRankers(Fixed([0, 0, 1], [0, 0, 0]), Fixed([1, 1, 0], [0, 0, 0]))
    ranker.rank(["p", "q"], [["a", "a", "b"], ["c", "c", "c"]])
    assert (ranker.metrics()["label_agreement"], ranker.metrics()["label_agreement_n"]) == (0.0, 1)


def test_two_judges_add_up():
    ranker = AgreeingRankers(Fixed([0, 1], judge_requests=2, judge_cost=0.5), Fixed([0, 1], judge_requests=3))
    ranker.rank(["p"], [["a", "b"]])
    assert (ranker.metrics()["judge_requests"], ranker.metrics()["judge_cost"]) == (5, 0.5)
    assert ranker.notes()[1:] == ["judge_requests", "judge_cost", "judge_requests"]


def test_a_function_and_a_judge_agree(tmp_path):
    with chat_stub(longer) as stub:
        ranker = open_ranker(context(tmp_path, ["warmth", judge_file(tmp_path, stub.url)]))
        labels = ranker.rank(["p"], [["I am so happy and glad", "I am happy", "terrible"]])
    assert labels == [Label([0, 1, None])] or labels == [Label([0, 1, 2])]
    assert ranker.metrics()["label_agreement_n"] == 1
