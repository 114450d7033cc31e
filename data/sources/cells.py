"""Values of the cells of CSV and TSV files, which are all text."""

from __future__ import annotations

import json
import re
from typing import Any

from data.sources.bad_rows import BadRow
from data.sources.json_rows import loads, repeated_key
from data.sources.order import PAIR_SCORES, RANKS, SCORES

NUMBERS = frozenset(
    {*SCORES, *RANKS, "annotator1", "annotator2", "annotator3", "turn"}.union(*map(set, PAIR_SCORES))
)
LISTS = frozenset({*SCORES, *RANKS, "messages", "history", "completions", "conversation_a", "conversation_b"})
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
# A list of texts, which JSON or Python writes, of several answers.
_OF_TEXTS = re.compile(r"""\[\s*(["']).*\1\s*\]""", re.DOTALL)
_MAY_BE_TEXTS = frozenset({"chosen", "rejected"})
_ROLE, _CONTENT = r"['\"](role|from)['\"]\s*:", r"['\"](content|value)['\"]\s*:"
# What begins as messages do that JSON or Python writes, and has both of their keys.
_OF_MESSAGES = re.compile(rf"(\[\s*)?\{{\s*({_ROLE}.*{_CONTENT}|{_CONTENT}.*{_ROLE})", re.DOTALL)


def value_of(key: str, cell: str) -> Any:
    """The number or the list that a cell holds, if `key` has one; messages under any key; else the text.

    An answer may be JSON itself. Without a role and a content, it is text.

    Raises:
        BadRow: the cell looks like a list or a message, and is no JSON, or a number is too long to be read.
    """
    if key in NUMBERS and _NUMBER.fullmatch(cell.strip()):
        return _number(key, cell)
    is_list = (key in LISTS and cell.startswith("[")) or (key in _MAY_BE_TEXTS and _OF_TEXTS.fullmatch(cell))
    if not (is_list or _OF_MESSAGES.match(cell)):
        return cell
    try:
        value, repeated = loads(cell)
    except (json.JSONDecodeError, RecursionError, ValueError):
        raise BadRow(
            f"`{key}` holds a list or message that is not JSON, as pandas writes them; write such rows as "
            "JSONL or Parquet"
        ) from None
    if repeated and (fault := repeated_key(value)):
        raise fault
    return value if is_list or _is_messages(value) else cell


def _number(key: str, cell: str) -> int | float:
    try:
        return float(cell) if re.search("[.eE]", cell) else int(cell)
    except ValueError:
        raise BadRow(f"`{key}` holds a number of thousands of digits; shorten it") from None


def _is_messages(value: Any) -> bool:
    """Whether a value is a message or a list of messages: each has a role, and a content that may be none."""
    turns = [value] if isinstance(value, dict) else value
    return isinstance(turns, list) and all(map(_is_message, turns))


def _is_message(turn: Any) -> bool:
    if not isinstance(turn, dict):
        return False
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    return isinstance(role, str) and (content is None or isinstance(content, (str, list)))
