"""Figures of a reward model on rankings whose answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.maths.preferences import (
    Noise,
    ScoredRanking,
    baseline_margins,
    ceiling_of,
    ceiling_of_agreed,
    groups,
    lead_over,
    length_correlation,
    mistakes,
    pairs_of,
    prompt_numbers,
    reward_report,
    share_in_order,
    tied_share,
)


def ranking(rewards, ranks=None, lengths=None, **more) -> ScoredRanking:
    """Best first, unless `ranks` says otherwise."""
    count = len(rewards)
    given: dict[str, Any] = {
        "prompt": "p",
        "answers": [f"a{place}" for place in range(count)],
        "ranks": ranks or list(range(count)),
        "rewards": [float(reward) for reward in rewards],
        "lengths": lengths or [5] * count,
        "nats": [-1.0] * count,
        "words": [0.0] * count,
    }
    return ScoredRanking(**(given | more))


def test_accuracy_is_a_mean_over_prompts_not_over_pairs():
    """Six pairs of one prompt, all right, and one pair of another, wrong: one half."""
    pairs = pairs_of([ranking([4, 3, 2, 1]), ranking([1, 2])])
    assert len(pairs.margins) == 7
    assert share_in_order(pairs, pairs.margins)["value"] == 0.5
    assert pairs.weights.sum() == pytest.approx(2)


def test_ties_make_no_pair_and_equal_rewards_are_half_right():
    rankings = [ranking([1, 1, 0], ranks=[0, 0, 1]), ranking([2, 2]), ranking([3, 1], ranks=[0, 0])]
    pairs = pairs_of(rankings)
    assert len(pairs.margins) == 3 and len(pairs.rankings) == 2
    assert share_in_order(pairs, pairs.margins)["value"] == 0.75
    assert tied_share(rankings) == pytest.approx(2 / 5)


def test_groups_tell_where_the_model_is_right():
    rankings = [
        ranking([3, 2, 0, 1], lengths=[4, 9, 6, 6]),  # wrong only about the last two, which are equally long
        ranking([1, 0], lengths=[1, 30]),
    ]
    found = groups(pairs_of(rankings))
    assert found["distance of ranks"]["3"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 1}
    assert found["distance of ranks"]["1"]["value"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["length"]["equal lengths"]["value"] == 0.0
    assert found["length"]["the better answer is shorter"]["n"] == 2
    assert "margin of the labels" not in found
    labelled = [ranking([3, 1, 2], labels=[9.0, 5.0, 4.0]), ranking([1, 0], labels=[1.0, 0.0])]
    assert len(groups(pairs_of(labelled))["margin of the labels"]) == 3


def test_values_that_are_alike_lose_no_pair():
    """Differences of lengths of 5 in most pairs: two parts, and all pairs in one of them."""
    rankings = [ranking([1, 0], lengths=[10, 5]) for _ in range(6)] + [ranking([1, 0], lengths=[20, 5])]
    parts = groups(pairs_of(rankings))["difference of lengths"]
    assert {name: figure["n"] for name, figure in parts.items()} == {"up to 5 tokens": 6, "above 5 tokens": 1}


@pytest.mark.parametrize("right", [(0.8, 0.8), (0.6, 1.0)])
def test_nobody_agrees_with_one_person_more_than_the_agreement_of_two_allows(right):
    """Two people judge half of the pairs rightly with one probability, half with another."""
    random, count = np.random.default_rng(0), 100_000
    one, other = (random.random(count) < np.repeat(right, count // 2) for _ in range(2))
    agreement = float((one == other).mean())
    bound = ceiling_of({"value": agreement})["value"]
    assert bound >= one.mean() - 0.005 > agreement
    assert right[0] != right[1] or bound == pytest.approx(one.mean(), abs=0.005)
    assert ceiling_of({"value": 0.4, "low": 0.3, "high": 1.0, "n": 7}) == {
        "value": 0.5,
        "low": 0.5,
        "high": 1.0,
        "n": 7,
    }


@pytest.mark.parametrize("right", [(0.8, 0.8), (0.6, 1.0)])
@pytest.mark.parametrize("ties", [0, 1 / 3])
def test_the_majority_of_three_votes_is_right_no_more_than_the_agreement_of_two_allows(right, ties):
    """Votes of half of the pairs are right with one probability, of half with another; some tie.

    The third vote of a share of the pairs is a tie. Without a majority, a pair does not count.
    """
    random, count = np.random.default_rng(0), 100_000
    votes = np.where(random.random((3, count)) < np.repeat(right, count // 2), 1, -1)
    agreement = float((votes[0] == votes[1]).mean())
    votes[2] *= random.random(count) >= ties
    total = votes.sum(axis=0)
    majority = (total[total != 0] > 0).mean()
    bound = ceiling_of_agreed({"value": agreement})["value"]
    assert bound >= majority > agreement
    assert bound > ceiling_of({"value": agreement})["value"], "a majority is less noisy than one vote"
    assert ceiling_of_agreed({"value": 0.4, "high": 1.0, "n": 7}) == {"value": 0.5, "high": 1.0, "n": 7}


@pytest.mark.parametrize("right", [0.6, 0.9])
def test_two_votes_that_agree_are_right_as_often_as_the_bound_says(right):
    agreement = right**2 + (1 - right) ** 2
    assert ceiling_of_agreed({"value": agreement})["value"] == pytest.approx(right**2 / agreement)


def test_conversations_with_one_last_message_are_two_prompts():
    rankings = [ranking([2, 1], prompt="And then?", key=key) for key in ("a", "b", "a")]
    assert prompt_numbers(rankings) == [0, 1, 0]
    assert prompt_numbers([ranking([2, 1], prompt="p"), ranking([2, 1], prompt="p")]) == [0, 0]


def test_the_lead_over_a_baseline_is_paired():
    """A model that is right exactly where length is wrong leads by one for each such prompt."""
    rankings = [ranking([1, 0], lengths=[1, 9]) for _ in range(6)]
    rankings += [ranking([1, 0], lengths=[9, 1]) for _ in range(4)]
    pairs = pairs_of(rankings)
    assert share_in_order(pairs, baseline_margins(pairs)["longer"])["value"] == 0.4
    lead = lead_over(pairs, baseline_margins(pairs)["longer"])
    assert lead["value"] == pytest.approx(0.6) and lead["low"] > 0


def test_correlation_with_length_is_within_prompts():
    """Longer prompts' answers may all score higher. What counts is the order among answers to one prompt."""
    rankings = [ranking([3 + shift, 2 + shift, 1 + shift], lengths=[1, 2, 3]) for shift in (0, 50)]
    found = length_correlation(rankings)
    assert found is not None and found["value"] == pytest.approx(-1)
    assert length_correlation([ranking([1, 1], lengths=[1, 2])]) is None


def test_the_surest_mistakes_come_first_one_of_each_prompt():
    rankings = [ranking([0, 5, 9]), ranking([0, 2]), ranking([1, 0])]
    found = mistakes(pairs_of(rankings))
    assert [(one["margin"], one["better"], one["worse"]) for one in found] == [
        (-9, "a0", "a2"),
        (-2, "a0", "a1"),
    ]


def test_the_report_of_a_model_that_knows_the_truth_and_of_a_coin():
    random = np.random.default_rng(0)
    known, coin = [], []
    for _ in range(200):
        truth = np.sort(random.normal(0, 1, 4))[::-1]
        lengths = random.integers(1, 40, 4).tolist()
        known.append(ranking(truth * 3, lengths=lengths, words=random.normal(0, 1, 4).tolist()))
        coin.append(ranking(random.normal(0, 1, 4), lengths=lengths))
    report = reward_report(known, Noise("two people", {"value": 0.7, "low": 0.6, "high": 0.8, "n": 20}))
    assert report["accuracy"]["value"] == 1 and report["lead"]["low"] > 0.4
    assert report["calibration"]["temperature"] is None  # it is right about everything
    assert report["mistakes"] == [] and report["agreement"]["value"] == 0.7
    assert report["ceiling"] == pytest.approx(
        {"value": 0.8162, "low": 0.7236, "high": 0.8873, "n": 20}, abs=1e-4
    )
    guess = reward_report(coin, None)
    assert guess["accuracy"]["low"] < 0.5 < guess["accuracy"]["high"]
    assert guess["lead"]["low"] < 0
    assert (
        guess["calibration"]["error"] > guess["calibration"]["error_of_calibrated"]
    )  # as sure as it is wrong


def test_several_rankings_of_one_prompt_are_one_prompt():
    """Three judgements of one question, all right, and one of another, wrong: one half of two prompts."""
    rankings = [ranking([2, 1]), ranking([3, 1]), ranking([2, 0]), ranking([1, 2])]
    together, apart = pairs_of(rankings, [7, 7, 7, 4]), pairs_of(rankings)
    accuracy = share_in_order(together, together.margins)
    assert (accuracy["value"], accuracy["n"]) == (0.5, 2)
    assert share_in_order(apart, apart.margins)["value"] == 0.75
    assert together.weights.tolist() == pytest.approx([1 / 3] * 3 + [1])
    assert mistakes(together)[0]["margin"] == -1
    report = reward_report(rankings, None, [7, 7, 7, 4])
    assert report["accuracy"]["n"] == 2 and report["pairs"] == 4


def test_a_baseline_without_values_is_left_out():
    rankings = [ranking([2, 1], nats=[], words=[]), ranking([1, 2], nats=[], words=[])]
    assert baseline_margins(pairs_of(rankings)).keys() == {"longer", "shorter"}
    assert reward_report(rankings, None)["best_baseline"] in ("longer", "shorter")
