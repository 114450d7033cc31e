"""What a labeller says of an answer: a score, and the named parts that the score is made of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from configs.errors import UserError
from stages.feedback.user_functions import as_list, as_numbers

SCORE = "score"
PART_NAME = re.compile("[A-Za-z][A-Za-z0-9_]{0,39}")


@dataclass(frozen=True)
class Judgement:
    """The score of an answer: more is better.

    Attributes:
        parts: what the score was made of, such as warmth and fluency; empty if the labeller gives a number.
    """

    score: float
    parts: Mapping[str, float] = field(default_factory=dict)


def as_judgements(values: Any, completions: Sequence[str], source: str) -> list[Judgement]:
    """The judgements that a labeller `source` gave of the completions.

    Args:
        values: one finite number per completion, or one mapping of names to such numbers. The mapping has
            the total as `score`, and its other entries are parts.

    Raises:
        UserError: they are neither.
    """
    given = as_list(values, completions, source)
    if not any(isinstance(value, Mapping) for value in given):
        return [Judgement(number) for number in as_numbers(given, completions, source)]
    names = _names(given, completions, source)
    columns = [
        as_numbers([value[name] for value in given], completions, f"{source}, {name!r},") for name in names
    ]
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    return [Judgement(row.pop(SCORE), row) for row in rows]


def _names(given: Sequence[Any], completions: Sequence[str], source: str) -> list[str]:
    """The names that all mappings have; raises UserError if they differ, or if one is no name."""
    names = next(list(value) for value in given if isinstance(value, Mapping))
    for index, value in enumerate(given):
        if not isinstance(value, Mapping) or set(value) != set(names):
            raise UserError(
                f"{source} gave {value!r:.100} for completions[{index}], {completions[index]!r:.60}. "
                f"Give a mapping with the same names for each completion: {', '.join(map(str, names)):.100}."
            )
    wrong = [name for name in names if not isinstance(name, str) or not PART_NAME.fullmatch(name)]
    if wrong or SCORE not in names:
        fault = f"the name {wrong[0]!r:.60}" if wrong else f"no {SCORE!r}"
        raise UserError(
            f"{source} gave a mapping with {fault}. It needs the total as {SCORE!r}; the names of its parts "
            "are letters, digits and underscores."
        )
    return names


def by_name(prefix: str, judgements: Sequence[Judgement]) -> dict[str, list[float]]:
    """The scores as `prefix`, and each part as `prefix_PART`; empty without judgements."""
    if not judgements:
        return {}
    scores = {prefix: [judgement.score for judgement in judgements]}
    parts = judgements[0].parts
    return scores | {
        f"{prefix}_{name}": [judgement.parts[name] for judgement in judgements] for name in parts
    }
