"""The order of a row's answers by its ranks, scores and ratings, and whether an answer is rated good."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from data.sources.bad_rows import BadRow
from data.sources.text import listed, shown

RANKS = ("ranks", "rank", "ranking")  # one number for each answer, the lowest for the best
SCORES = ("scores", "ratings", "score", "rating")  # one number for each answer, the highest for the best
PAIR_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)
GOOD = ("true", "yes", "1", "good", "desirable", "positive", "chosen")
WRITTEN_AS_FLOAT = re.compile(r"^(-?[01])\.0+$")  # as pandas writes 1 beside empty cells
BAD = ("false", "no", "0", "-1", "bad", "undesirable", "negative", "rejected")


def ranks_of_completions(row: Mapping[str, Any], count: int) -> list[int]:
    """The rank of each of `completions`, 0 for the best; the order in which they stand if no key says more.

    Raises:
        BadRow: a key does not have one number for each completion, or two keys contradict each other.
    """
    orders = dict(_list_orders(row, count))
    _check_consistent(orders)
    return _dense(next(iter(orders.values()), list(range(count))))


def ranks_of_pair(row: Mapping[str, Any]) -> list[int]:
    """The ranks of `chosen` and `rejected`: [0, 1], or [0, 0] if their scores are equal.

    Raises:
        BadRow: a score or rank says that `rejected` is better.
    """
    orders = dict([*_list_orders(row, 2), *_pair_orders(row)])
    _check_consistent({"chosen": [0, 1], **orders})
    return [0, 0] if any(best == worst for best, worst in orders.values()) else [0, 1]


def scores_of_answers(row: Mapping[str, Any], count: int) -> list[float] | None:
    """The score of each of a row's `count` answers, or of `chosen` and `rejected`; None if it has none."""
    lists = [row[key] for key in SCORES if isinstance(row.get(key), list) and len(row[key]) == count]
    pairs = [[row[a], row[b]] for a, b in PAIR_SCORES if count == 2 and a in row and b in row]
    try:
        return [float(score) for score in (lists + pairs)[0]] if lists or pairs else None
    except OverflowError:  # an integer of hundreds of digits, which has a rank and no magnitude
        return None


def _list_orders(row: Mapping[str, Any], count: int) -> Iterator[tuple[str, list[float]]]:
    """Each key that orders the answers, with a number for each answer: the lower, the better."""
    for key in (*RANKS, *SCORES):
        if key in row:
            values = row[key]
            if not isinstance(values, list) or not all(map(is_number, values)):
                raise BadRow(f"`{key}` must be a list of numbers, not {shown(values)}")
            if len(values) != count:
                raise BadRow(f"`{key}` has {len(values)} entries for {count} completions")
            yield key, values if key in RANKS else [-value for value in values]


def _pair_orders(row: Mapping[str, Any]) -> Iterator[tuple[str, list[float]]]:
    for keys in PAIR_SCORES:
        for key in keys:
            if key in row and not is_number(row[key]):
                raise BadRow(f"`{key}` must be a number, not {shown(row[key])}")
        if all(key in row for key in keys):
            yield keys[0], [-row[key] for key in keys]
    halves = [[pair[side] for pair in PAIR_SCORES if pair[side] in row] for side in (0, 1)]
    if all(halves) and not any(all(key in row for key in pair) for pair in PAIR_SCORES):
        raise BadRow(f"{listed(half[0] for half in halves)} are halves of two pairs of scores; rename one")


def _check_consistent(orders: Mapping[str, Sequence[float]]) -> None:
    for (one, ours), (other, theirs) in combinations(orders.items(), 2):
        pairs = combinations(zip(ours, theirs, strict=True), 2)
        if any((a > b and x < y) or (a < b and x > y) for (a, x), (b, y) in pairs):
            if one == "chosen":
                raise BadRow(f"`{other}` says that `rejected` is better than `chosen`")
            raise BadRow(
                f"{listed((one, other))} contradict each other: the best has the lowest rank, highest score"
            )


def _dense(values: Sequence[float]) -> list[int]:
    distinct = sorted(set(values))
    return [distinct.index(value) for value in values]


def is_number(value: Any) -> bool:
    """Whether a value of a row is a finite number."""
    if isinstance(value, int):  # math.isfinite fails on very large ones
        return not isinstance(value, bool)
    return isinstance(value, float) and math.isfinite(value)


def rated_good(label: Any) -> bool:
    """Whether a `label` (KTO's) rates its answer as good.

    Raises:
        BadRow: it does not say.
    """
    text = str(int(label)) if isinstance(label, (bool, int, float)) and label in (-1, 0, 1) else label
    if isinstance(text, str):
        word = WRITTEN_AS_FLOAT.sub(r"\1", text.strip().lower())
        if word in (*GOOD, *BAD):
            return word in GOOD
    raise BadRow(
        f"`label` must rate the answer as true or false, not {shown(label)}; name it in `ignore_columns` of "
        "this source if it says something else"
    )


def without_copies(keys: Sequence[Hashable], ranks: Sequence[int]) -> list[int]:
    """Positions of the answers that are left once copies that are ranked apart are dropped.

    Of copies that stand next to each other, the first stays. Copies with another answer between them
    contradict each other, and none stays. Copies of equal rank stay: they make no pair.

    Args:
        keys: what makes two answers the same, best first.
    """
    copies: dict[Hashable, list[int]] = {}
    for position, key in enumerate(keys):
        copies.setdefault(key, []).append(position)
    kept: list[int] = []
    for positions in copies.values():
        first, last = positions[0], positions[-1]
        if ranks[first] == ranks[last]:
            kept += positions
        elif last - first + 1 == len(positions):
            kept.append(first)
    return sorted(kept)
