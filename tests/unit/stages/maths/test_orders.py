"""Ranks, verdicts on pairs, and what two orders share: by hand, and against brute force."""

from __future__ import annotations

import random
import time
from itertools import combinations, permutations

import pytest

from stages.maths.orders import common_order, copeland_ranks, ranks_of


@pytest.mark.parametrize(
    ("scores", "ranks"),
    [
        ([0.5], [0]),
        ([0.1, 0.9, 0.5], [2, 0, 1]),
        ([1.0, 2.0, 2.0, 0.0], [1, 0, 0, 2]),  # equal scores share a rank, and no rank is left out
        ([3.0, 3.0], [0, 0]),
        ([-1.0, -2.0], [0, 1]),
    ],
)
def test_ranks_by_hand(scores, ranks):
    assert ranks_of(scores) == ranks


def test_ranks_order_every_pair_as_the_scores_do():
    scores = [0.3, -1.0, 0.3, 2.0, 0.0, 2.0, -1.5]
    ranks = ranks_of(scores)
    for score, rank in zip(scores, ranks, strict=True):
        assert [rank < other for other in ranks] == [score > other for other in scores]
    assert sorted(set(ranks)) == list(range(len(set(scores))))


def verdicts_of(order, liking=None):
    """What a judge says who prefers the earlier in `order`; or always `liking`, if given."""
    return {
        (i, j): float(order.index(i) < order.index(j)) if liking is None else liking
        for i, j in permutations(range(len(order)), 2)
    }


def test_a_consistent_judge_is_followed():
    assert copeland_ranks(4, verdicts_of([2, 0, 3, 1])) == [1, 3, 0, 2]


@pytest.mark.parametrize("liking", [1.0, 0.0, 0.5, None])
def test_a_judge_that_looks_at_the_place_alone_has_only_ties(liking):
    verdicts = verdicts_of([0, 1, 2], liking) if liking is not None else dict.fromkeys(verdicts_of([0, 1, 2]))
    assert copeland_ranks(3, verdicts) == [0, 0, 0]


def test_wins_decide_and_a_circle_ties():
    circle = verdicts_of([0, 1, 2]) | {(0, 2): 0.0, (2, 0): 1.0}  # 0 beats 1, 1 beats 2, 2 beats 0
    assert copeland_ranks(3, circle) == [0, 0, 0]
    # 0 beats 1 and 2; 1 and 2 disagree with themselves: wins 2, 1/2, 1/2
    assert copeland_ranks(3, verdicts_of([0, 1, 2]) | {(2, 1): 1.0}) == [0, 1, 1]


@pytest.mark.parametrize(
    ("first", "second", "largest"),
    [
        ([0, 1, 2, 3], [0, 1, 2, 3], [[0, 1, 2, 3]]),
        ([0, 1, 2, 3], [1, 0, 2, 3], [[0, 2, 3], [1, 2, 3]]),
        ([0, 1, 2], [2, 1, 0], [[0], [1], [2]]),
        ([0, 0, 1], [0, 0, 1], [[0, 1, 2]]),  # ties alike
        ([0, 0, 1], [0, 1, 2], [[0, 2], [1, 2]]),  # a tie of one alone: one of the two goes
        ([0, 1, 1, 1], [1, 0, 0, 0], [[1, 2, 3]]),  # three that tie are more than one
        ([0, 0, 1, 2], [1, 1, 0, 2], [[0, 1, 3]]),
        ([0, 0, 1, 2], [0, 1, 2, 2], [[0, 2], [0, 3], [1, 2], [1, 3]]),
        ([0, 0, 1, 1, 2], [1, 1, 0, 2, 0], [[0, 1, 3]]),
        ([], [], [[]]),
    ],
)
def test_common_order_by_hand(first, second, largest):
    assert common_order(first, second) in largest


def alike(first, second, chosen):
    return all(
        (first[i] < first[j], first[i] > first[j]) == (second[i] < second[j], second[i] > second[j])
        for i, j in combinations(chosen, 2)
    )


def test_common_order_is_the_largest_set_of_all_and_has_the_most_ranks():
    chance = random.Random(0)
    for _ in range(300):
        count = chance.randint(1, 8)
        ranks = chance.randint(1, count)
        first, second = ([chance.randrange(ranks) for _ in range(count)] for _ in range(2))
        subsets = [
            chosen
            for size in range(1, count + 1)
            for chosen in combinations(range(count), size)
            if alike(first, second, chosen)
        ]
        best = max((len(chosen), len({first[i] for i in chosen})) for chosen in subsets)
        kept = common_order(first, second)
        assert alike(first, second, kept)
        assert (len(kept), len({first[i] for i in kept})) == best


def test_common_order_is_fast_for_many_answers():
    chance = random.Random(1)
    first, second = (chance.sample(range(1024), 1024) for _ in range(2))
    started = time.perf_counter()
    assert len(common_order(first, second)) > 40  # about 2 * sqrt(K) for random orders
    assert common_order(first, first) == list(range(1024))
    assert time.perf_counter() - started < 1
