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
# A list of texts, which JSON or Python writes. Such a list is no answer of its own.
_OF_TEXTS = re.compile(r"""\[\s*(["']).*\1\s*\]""", re.DOTALL)
_MAY_BE_TEXTS = frozenset({"chosen", "rejected", "prompt", "completion"})
_OF_MESSAGES = re.compile(r"(\[\s*)?\{\s*['\"](role|from|content|value)['\"]\s*:")


def value_of(key: str, cell: str) -> Any:
    """The number or the list that a cell holds, if `key` has one; messages under any key; else the text.

    Raises:
        BadRow: the cell looks like a list or a message, and is no JSON.
    """
    if key in NUMBERS and _NUMBER.fullmatch(cell.strip()):
        return float(cell) if re.search("[.eE]", cell) else int(cell)
    is_list = key in LISTS and cell.startswith("[")
    if not (is_list or _OF_MESSAGES.match(cell) or (key in _MAY_BE_TEXTS and _OF_TEXTS.fullmatch(cell))):
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
    return value
