"""The two ways to ask a judge: pair by pair in both orders, or all answers in one request."""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import permutations
from string import ascii_uppercase as LETTERS
from typing import Any, Protocol

from configs.judge_file import Mode
from stages.feedback.verdict_cache import Reply
from stages.feedback.verdicts import read_pair, read_ranking
from stages.maths.orders import copeland_ranks

Shown = tuple[int, ...]  # the answers of one request, by number, in the order in which it shows them


class Asking(Protocol):
    """What to ask about K answers to a prompt, and what the replies say.

    Attributes:
        reply: the form of a reply, for messages.
        most: the most answers.
    """

    reply: str
    most: int

    def requests(self, count: int) -> int:
        """The number of requests about so many answers."""

    def shown(self, count: int, seed: int) -> list[Shown]:
        """What each request shows."""

    def read(self, reply: Reply, count: int) -> Any:
        """The verdict in a reply to a request that shows so many answers; None if it is unreadable."""

    def ranks(self, count: int, verdicts: Mapping[Shown, Any]) -> list[int]:
        """The ranks of the answers, 0 for the best, by the verdict on what each request shows."""


class Pairs:
    """Each pair is asked in both orders; answers are ranked by wins."""

    reply, most = "one letter, A or B", 1024

    def requests(self, count: int) -> int:
        """See `Asking`."""
        return count * (count - 1)

    def shown(self, count: int, seed: int) -> list[Shown]:
        """See `Asking`."""
        return list(permutations(range(count), 2))

    def read(self, reply: Reply, count: int) -> float | None:
        """See `read_pair`."""
        return read_pair(reply.text, reply.cut)

    def ranks(self, count: int, verdicts: Mapping[Shown, float | None]) -> list[int]:
        """See `copeland_ranks`."""
        return copeland_ranks(count, {(i, j): verdict for (i, j), verdict in verdicts.items()})


class Ranking:
    """One request shows all answers, in a random order, so that no answer gains from its place."""

    reply, most = "an order of all letters, such as B > A = C", len(LETTERS)

    def requests(self, count: int) -> int:
        """See `Asking`."""
        return int(count > 1)

    def shown(self, count: int, seed: int) -> list[Shown]:
        """See `Asking`."""
        order = list(range(count))
        random.Random(seed).shuffle(order)
        return [tuple(order)] if count > 1 else []

    def read(self, reply: Reply, count: int) -> list[int] | None:
        """See `read_ranking`."""
        return read_ranking(reply.text, count, reply.cut)

    def ranks(self, count: int, verdicts: Mapping[Shown, list[int] | None]) -> list[int]:
        """See `Asking`. An unreadable reply is a tie of all."""
        ranks = [0] * count
        for shown, verdict in verdicts.items():
            for answer, rank in zip(shown, verdict or ranks.copy(), strict=True):
                ranks[answer] = rank
        return ranks


MODES: dict[Mode, Asking] = {"pairs": Pairs(), "ranking": Ranking()}
