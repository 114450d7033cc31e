"""JSON objects whose keys are unique. Python's reader takes the last of two, without a word."""

from __future__ import annotations

from typing import Any


class DuplicateKey(ValueError):
    """A JSON object has `key` twice."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{key!r:.60} is given twice")
        self.key = key


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's keys and values, for the `object_pairs_hook` of `json.loads`.

    Raises:
        DuplicateKey: a key stands there twice.
    """
    keys = [key for key, _ in pairs]
    values = dict(pairs)
    if len(values) < len(keys):
        raise DuplicateKey(next(key for key in values if keys.count(key) > 1))
    return values
