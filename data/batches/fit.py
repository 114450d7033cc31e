"""The rule for over-long examples, and how many examples are kept, truncated and dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from configs.errors import UserError
from configs.schema import Data

Encoded = tuple[list[int], list[list[int]]]  # token ids of the prompt, and of each completion


class NothingFits(UserError):
    """All examples are longer than the limits."""


class NoPair(UserError):
    """No ranking has two different completions of different rank."""


@dataclass(frozen=True)
class Counts:
    """Number of examples by outcome. Truncated examples count as kept, too.

    Attributes:
        dropped: over-long ones.
        without_pair: rankings of which no two different completions are left, in the tokens that are kept.
        copies: completions that were dropped from the other rankings, as they are ranked apart from a copy.
    """

    kept: int = 0
    truncated: int = 0
    dropped: int = 0
    without_pair: int = 0
    copies: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def __str__(self) -> str:
        text = (
            f"{self.kept:,} of {self.kept + self.dropped + self.without_pair:,} examples kept, "
            f"{self.truncated:,} of them truncated; over-long and dropped: {self.dropped:,}"
        )
        if self.without_pair or self.copies:
            text += f"; dropped as their completions are the same: {self.without_pair:,}"
            text += f"; copies dropped from other rankings: {self.copies:,}"
        return text

    def as_metrics(self, held_out: Counts) -> dict[str, int]:
        """The counts of the training examples and of the held-out ones, by name."""
        both = {
            "examples_truncated": self.truncated + held_out.truncated,
            "examples_too_long": self.dropped + held_out.dropped,
            "examples_without_pair": self.without_pair + held_out.without_pair,
        }
        return {"examples": self.kept, "examples_held_out": held_out.kept, **both}


@dataclass(frozen=True)
class Fitted:
    prompt_ids: list[int]
    completion_ids: list[list[int]]
    truncated: bool


def fit_to_limits(prompt_ids: list[int], completions: list[list[int]], data: Data) -> Fitted | None:
    """Apply the rule for over-long examples. None means that the example is dropped.

    An example is over-long if its prompt has more than `max_prompt_length` tokens, or prompt and longest
    completion together more than `max_length`. `overlong: drop` drops it. `overlong: truncate` keeps the last
    `max_prompt_length` tokens of the prompt, which include the template's generation prompt, and as many
    first tokens of each completion as fit. A truncated completion has no end-of-turn token.
    """
    longest = max((len(ids) for ids in completions), default=0)
    if len(prompt_ids) <= data.max_prompt_length and len(prompt_ids) + longest <= data.max_length:
        return Fitted(prompt_ids, completions, truncated=False)
    if data.overlong == "drop":
        return None
    prompt_ids = prompt_ids[-data.max_prompt_length :]
    room = data.max_length - len(prompt_ids)
    return Fitted(prompt_ids, [ids[:room] for ids in completions], truncated=True)


def count(encoded: Sequence[Encoded], fitted: Sequence[Fitted | None], data: Data) -> Counts:
    kept = [fit for fit in fitted if fit is not None]
    if encoded and not kept:
        prompt = min(len(prompt_ids) for prompt_ids, _ in encoded)
        whole = min(len(ids) + max(map(len, answers), default=0) for ids, answers in encoded)
        raise NothingFits(
            f"none of the {len(encoded)} examples fits: the shortest prompt has {prompt} tokens "
            f"(data.max_prompt_length: {data.max_prompt_length}), the shortest example {whole} "
            f"(data.max_length: {data.max_length}). Raise these limits, or set data.overlong to truncate."
        )
    return Counts(len(kept), sum(fit.truncated for fit in kept), len(fitted) - len(kept))
