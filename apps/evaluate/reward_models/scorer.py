"""What every reward model does here: score answers. And which order of work is fast for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from data.batches.sampler import micro_batches

Row = dict[str, Any]
Tokens = TypeVar("Tokens")
AT_ONCE = 8  # answers in one forward


@dataclass(frozen=True)
class ScoredRow:
    """What a reward model says of the answers of a row, best first by the labels; a value for each answer.

    Attributes:
        row: its place among the rows.
        ranks: 0 is the best.
        lengths: in tokens.
        nats: log-likelihood per token under the base; empty if there is no language model.
    """

    row: int
    answers: list[str]
    ranks: list[int]
    rewards: list[float]
    lengths: list[int]
    nats: list[float]
    labels: list[float] | None


class Scorer(Protocol):
    """An opened reward model.

    Attributes:
        name: of its folder, run or hub model.
        about: how it reads a row, in words.
    """

    name: str
    about: str

    def score(self, rows: Sequence[Row]) -> list[ScoredRow]:
        """The rows that fit into its context. It may drop answers that are copies of another."""
        ...


def by_length(
    items: Sequence[Tokens],
    length: Callable[[Tokens], int],
    score: Callable[[Sequence[Tokens]], list[float]],
    at_once: int = AT_ONCE,
) -> list[float]:
    """The score of each item, in order. Items of similar length are scored together: little is padding."""
    order = sorted(range(len(items)), key=lambda place: length(items[place]))
    scores = [0.0] * len(items)
    for places in micro_batches(order, at_once):
        for place, value in zip(places, score([items[place] for place in places]), strict=True):
            scores[place] = value
    return scores
