"""Read the rows of a JSON file: an array of objects, or one object per line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from configs.errors import UserError
from data.sources.bad_rows import BadRow
from data.sources.opening import open_data

Rows = Iterator[tuple[str, dict[str, Any] | BadRow]]  # the place of each row, "line 3" or "row 3", from 1


def read_json(file: Path) -> Rows:
    """Read an array of objects if the first character is `[`, else one object per line."""
    with open_data(file) as stream:
        start = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    return _json_array(file) if start.startswith(b"[") else _json_lines(file)


def _json_array(file: Path) -> Rows:
    try:
        with open_data(file) as stream:
            rows, repeated = loads(stream.read().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 at byte {error.start}. Save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{file}: invalid JSON at {where}: {error.msg}. Correct it there.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: {parser_limit(error)}. Correct it, or write one object per line.") from None
    return numbered([repeated_key(row) or row for row in rows] if repeated else rows)


def loads(text: str) -> tuple[Any, bool]:
    """The value of a JSON text, and whether an object has a key twice: a BadRow stands for it."""
    repeated = False

    def object_of(pairs: list[tuple[str, Any]]) -> Any:
        nonlocal repeated
        fields = dict(pairs)
        if len(fields) == len(pairs):
            return fields
        repeated = True
        counts = Counter(key for key, _ in pairs)
        key = next(key for key in counts if counts[key] > 1)
        return BadRow(f"the key {key!r:.60} stands {counts[key]} times in one object; remove all but one")

    return json.loads(text, object_pairs_hook=object_of), repeated


def repeated_key(value: Any) -> BadRow | None:
    """The first BadRow that `loads` put somewhere into `value`."""
    if isinstance(value, BadRow):
        return value
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next(filter(None, map(repeated_key, items)), None)


def _json_lines(file: Path) -> Rows:
    with open_data(file) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield f"line {number}", _parsed(line)


def _parsed(line: bytes) -> dict[str, Any] | BadRow:
    try:
        row, repeated = loads(line.decode("utf-8-sig"))
        return (repeated_key(row) if repeated else None) or _object(row)
    except UnicodeDecodeError as error:
        return BadRow(f"not UTF-8 at byte {error.start}; save the file as UTF-8")
    except json.JSONDecodeError as error:
        return BadRow(f"invalid JSON at column {error.colno}: {error.msg}; a line holds one whole object")
    except (ValueError, RecursionError) as error:
        return BadRow(parser_limit(error))


def parser_limit(error: ValueError | RecursionError) -> str:
    """Why Python refuses a valid JSON text."""
    return "nested too deeply" if isinstance(error, RecursionError) else "a number of thousands of digits"


def _object(row: Any) -> dict[str, Any] | BadRow:
    return (
        row
        if isinstance(row, (dict, BadRow))
        else BadRow(f"a JSON object is expected, not {type(row).__name__}")
    )


def numbered(rows: Iterable[Any]) -> Rows:
    return ((f"row {number}", _object(row)) for number, row in enumerate(rows, start=1))
