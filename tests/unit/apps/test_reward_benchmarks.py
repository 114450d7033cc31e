"""Figures of published benchmarks, by hand."""

from __future__ import annotations

import json
import math

import pytest

from apps.evaluate.reward_models.benchmarks import (
    SECTIONS,
    SUBSETS_2,
    in_order,
    is_reward_bench,
    is_reward_bench_2,
    picks_best,
    section_means,
    separates,
    subset_means,
    ties_pairs,
    ties_score,
)
from apps.evaluate.reward_models.measure import crossed_words, measure
from apps.evaluate.reward_models.rows import Preferences, read_preferences
from apps.evaluate.reward_models.scorer import ScoredRow, by_length
from configs.errors import UserError
from configs.schema import Source
from tests.unit.stages.maths.test_preferences import ranking


def test_a_score_that_is_not_finite_is_refused():
    class Overflowing:
        name, about = "theirs", "in fp16"

        def score(self, rows):
            return [ScoredRow(0, ["a", "b"], [0, 1], [float("nan"), 1.0], [1, 1], [], None)]

    rows = [{"prompt": "p", "completions": ["a", "b"], "ranks": [0, 1], "where": "pairs.jsonl, line 1"}]
    with pytest.raises(UserError, match=r"pairs\.jsonl, line 1: theirs gives an answer a score that is NaN"):
        measure(Overflowing(), Preferences(rows, [], 1, 0, []), print)


@pytest.mark.parametrize(
    ("rewards", "ranks", "best", "all_best", "ordered"),
    [
        ([4, 3, 2, 1], [0, 1, 1, 1], 1, 1, 1),
        ([3, 4, 2, 1], [0, 1, 1, 1], 0, 0, 2 / 3),
        ([4, 4, 2, 1], [0, 1, 1, 1], 1 / 2, 0, 5 / 6),
        ([4, 1, 2, 0], [0, 0, 1, 1], 1, 0, 3 / 4),  # the highest is right, and not all right ones lead
        ([1, 1, 1, 1], [0, 1, 1, 1], 1 / 4, 0, 1 / 2),
    ],
)
def test_the_best_of_four(rewards, ranks, best, all_best, ordered):
    one = ranking(rewards, ranks=ranks)
    assert picks_best(one) == pytest.approx(best)
    assert separates(one) == all_best
    assert in_order(one) == pytest.approx(ordered)


def test_mathematics_counts_as_much_as_all_code():
    """RewardBench gives its 447 rows of mathematics the weight of the 984 of code."""
    found = section_means(
        {"math-prm": [1, 1, 1, 0], "hep-cpp": [1, 0], "hep-go": [0, 0], "donotanswer": [1] * 3 + [0]}
    )
    assert found["Reasoning"]["value"] == pytest.approx((3 / 4 + 1 / 4) / 2)
    assert found["Safety"]["value"] == 3 / 4
    assert found["all sections"]["value"] == pytest.approx((1 / 2 + 3 / 4) / 2)
    assert found["all sections"]["n"] == 12
    low, high = found["Reasoning"]["low"], found["Reasoning"]["high"]
    assert 0 <= low < 1 / 2 < high <= 1


def test_other_rows_of_a_section_count_alike():
    found = section_means({"mt-bench-easy": [1.0], "alpacaeval-easy": [0.0, 0.0, 1.0]})
    assert found["Chat"]["value"] == 1 / 2


def test_reward_bench_is_known_by_its_subsets():
    names = [name for section in SECTIONS.values() for name in section]
    assert len(names) == len(set(names)) == 23
    assert is_reward_bench(names) and not is_reward_bench([*names, "Ties"]) and not is_reward_bench([])


@pytest.mark.parametrize(
    ("one", "several", "met", "ratio"),
    [
        ([5, 1, 0], [6, 5, 1, 0], 1.0, 4 / 1),  # margins of 4 and 4; the right answers lie 1 apart
        ([5, 1, 0], [9, 5, 4, 0], 0.6, 1 / 4),  # margins of 4 and 1, 4 apart
        ([2, 1, 0], [6, 4, 1, 0], 0.8, 1 / 2),  # margins of 1 and 3, 2 apart: the lower one is not enough
        ([1, 2, 0], [6, 5, 1, 0], 0.5, -1 / 1),
        ([1, 2, 0], [6, 1, 5, 0], 0.0, -4 / 5),
        ([5, 1, 0], [5, 5, 1, 0], 1.0, math.inf),
        ([1, 1, 0], [5, 5, 5, 0], 0.0, None),  # 0 / 0
    ],
)
def test_ties_count_accuracy_and_margins(one, several, met, ratio):
    rows = ranking(one, ranks=[0, 1, 1]), ranking(several, ranks=[0, 0, 1, 1])
    margin = 0 if ratio is None else math.tanh(ratio - 1)
    assert ties_score(*rows) == pytest.approx(met + 0.01 * margin)


def test_the_rows_of_one_question_are_paired():
    assert ties_pairs(["", "tied:1", "ref:2", "ref:1", "tied:3", "7"]) == [(3, 1)]


def test_the_subsets_of_reward_bench_2_count_alike():
    found = subset_means({"Math": [1, 0, 0, 0], "Ties": [1.0, 0.5], "Focus": []})
    assert list(found) == ["Math", "Ties", "all subsets"]
    assert found["all subsets"]["value"] == (1 / 4 + 3 / 4) / 2 and found["all subsets"]["n"] == 6
    four, six = ranking([1, 0, 0, 0], ranks=[0, 1, 1, 1]), ranking([1] * 6, ranks=[0, 0, 0, 1, 1, 1])
    assert is_reward_bench_2([four] * 5 + [six], SUBSETS_2)
    assert not is_reward_bench_2([four, six], ["Math", "Safety"])  # a subset of another data set
    assert not is_reward_bench_2([four], ["math"]) and not is_reward_bench_2([four], [])


def test_the_key_that_names_subsets_is_read(tmp_path):
    rows = [
        {"prompt": f"p{n}", "chosen": "a", "rejected": "b", "subset": "Safety", "topic": n} for n in range(3)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_preferences(Source(path=f"{tmp_path}/a.jsonl"), None, None)
    assert read.subsets == ["Safety"] * 3
    assert read.notes == [f"{tmp_path}/a.jsonl: not read: `topic`"]


def test_the_bag_of_words_never_learns_from_the_prompt_that_it_judges():
    """Each prompt's better answer has a word of its own, which tells nothing about other prompts."""
    rows = [
        ScoredRow(n, [f"good{n} same", f"bad{n} same"], [0, 1], [0, 0], [2, 2], [], None) for n in range(30)
    ]
    words = crossed_words(rows, list(range(30)))
    assert all(one[0] == pytest.approx(one[1]) for one in words)
    shared = [ScoredRow(n, ["good same", "bad same"], [0, 1], [0, 0], [2, 2], [], None) for n in range(30)]
    assert all(one[0] > one[1] for one in crossed_words(shared, list(range(30))))
    assert crossed_words(rows[:5], list(range(5))) == [[]] * 5


def test_scores_come_back_in_order():
    texts = ["ccc", "a", "bb", "dddd", "e"]
    sizes = []

    def score(some):
        sizes.append([len(text) for text in some])
        return [float(ord(text[0])) for text in some]

    assert by_length(texts, len, score, at_once=2) == [float(ord(text[0])) for text in texts]
    assert sizes == [[1, 1], [2, 3], [4]]
