"""Rankings that stage rm collected: their form, and the split of a prompt that several rounds have."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from configs.errors import UserError
from data.sources.messages import Text
from data.sources.split import prompt_key
from data.storage.files import read_json_lines

Row = dict[str, Any]
SPLITS = ("train", "held_out")
KEYS = ("split", "prompt", "completions", "ranks")


def read_rankings(file: Path, remedy: str) -> list[Row]:
    """The rows of a file of rankings.

    Raises:
        UserError: a row is not one that stage rm writes; it ends with `remedy`.
    """
    rows = read_json_lines(file, KEYS, remedy=remedy)
    for number, row in enumerate(rows, 1):
        if not _is_ranking(row):
            raise UserError(f"{file}, line {number}: no ranking that stage rm collected. {remedy}")
    return rows


def split_of_rounds(
    rounds: Sequence[Sequence[Row]],
    trained: Collection[str],
    held_out: Collection[str],
    key_of: Callable[[Text], str] = prompt_key,
) -> Iterator[tuple[Row, str]]:
    """Each ranking of earlier rounds, the newest round first, with its split.

    A prompt is in one split only: that of the newest round that has it.

    Args:
        rounds: the rankings of each earlier round, the oldest first.
        trained: keys of prompts that are trained on now, whatever earlier rounds say.
        held_out: keys of prompts that are held out now.
        key_of: the key of a prompt.
    """
    known = dict.fromkeys(trained, "train") | dict.fromkeys(held_out, "held_out")
    for row in (row for rows in reversed(rounds) for row in rows):
        yield row, known.setdefault(key_of(row["prompt"]), row["split"])


def useful(rows: Iterable[Row]) -> list[Row]:
    """The rankings whose answers do not all tie."""
    return [row for row in rows if max(row["ranks"]) > 0]


def _is_ranking(row: Row) -> bool:
    """Whether a row has the form that stage rm writes. Answers that no policy sampled have no token ids."""
    lists = [row[key] for key in ("completions", "ranks", "completion_ids") if key in row]
    if not all(isinstance(value, list) and value for value in lists) or len(set(map(len, lists))) > 1:
        return False
    if not all(type(rank) is int and rank >= 0 for rank in row["ranks"]) or row["split"] not in SPLITS:
        return False
    return all(map(_is_text, (row["prompt"], *row["completions"])))


def _is_text(value: Any) -> bool:
    """Whether a value is a text, which may be empty as a sample may, or a conversation."""
    if not isinstance(value, list):
        return isinstance(value, str)
    return bool(value) and all(
        isinstance(one, dict) and isinstance(one.get("content"), str) and isinstance(one.get("role"), str)
        for one in value
    )
