"""Orders of K answers: ranks of scores, verdicts on pairs, and what two orders have in common."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import combinations, permutations
from typing import NamedTuple

Pair = tuple[int, int]


def ranks_of(scores: Sequence[float]) -> list[int]:
    """Rank of each score: 0 is the best. Equal scores share a rank, and ranks have no gaps."""
    order = sorted(set(scores), reverse=True)
    return [order.index(score) for score in scores]


def ordered_pairs(ranks: Sequence[int]) -> list[Pair]:
    """Positions of the better and of the worse answer of each pair that ranks, (K,), order."""
    return [(i, j) for i, j in permutations(range(len(ranks)), 2) if ranks[i] < ranks[j]]


def copeland_ranks(count: int, verdicts: Mapping[Pair, float | None]) -> list[int]:
    """Ranks of answers by wins over each other (Copeland 1951); 0 is the best, equal wins tie.

    Args:
        count: K, the number of answers.
        verdicts: for each (i, j), i != j, of the question that shows i first and j second: 1 if the first
            is better, 0 if the second is, 1/2 for a tie, None if there is no verdict.

    An answer wins if both orders say so, and a disagreement is a tie. That cancels a judge's liking for a
    place (Wang et al. 2023, "Large Language Models are not Fair Evaluators").
    """
    wins = [0.0] * count
    for i, j in combinations(range(count), 2):
        both = verdicts[i, j], verdicts[j, i]
        won = 1.0 if both == (1, 0) else 0.0 if both == (0, 1) else 0.5
        wins[i] += won
        wins[j] += 1 - won
    return ranks_of(wins)


class _Chain(NamedTuple):
    """Cells that both orders order alike, the last one and those before it."""

    size: Pair  # answers, then cells: of two sets of equal size, the one with more ranks
    cell: Pair
    before: _Chain | None


def common_order(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """Indices of the largest set of answers of which two orders order every pair alike, ties included.

    Answers of equal ranks in both orders are one cell, and cells must rise in both. So this is the heaviest
    increasing subsequence, found in O(K log K) comparisons (Fredman 1975 has the unweighted case).

    Args:
        first: (K,) ranks by one labeller.
        second: (K,) ranks by the other.

    Returns:
        Ascending indices. Of sets of equal size, one with the most ranks.
    """
    members: dict[Pair, list[int]] = {}
    for index, cell in enumerate(zip(first, second, strict=True)):
        members.setdefault(cell, []).append(index)
    # Of all chains so far, those that no other beats: the higher the last rank, the larger the chain.
    lasts: list[int] = []
    chains: list[_Chain] = []
    for cell in sorted(members, key=lambda cell: (cell[0], -cell[1])):  # so no chain has one first rank twice
        place = bisect_left(lasts, cell[1])
        before = chains[place - 1] if place else None
        answers, cells = before.size if before else (0, 0)
        chain = _Chain((answers + len(members[cell]), cells + 1), cell, before)
        end = place
        while end < len(chains) and chains[end].size <= chain.size:
            end += 1
        if end > place or place == len(chains) or lasts[place] > cell[1]:
            lasts[place:end], chains[place:end] = [cell[1]], [chain]
    kept: list[int] = []
    link = chains[-1] if chains else None
    while link is not None:
        kept += members[link.cell]
        link = link.before
    return sorted(kept)
