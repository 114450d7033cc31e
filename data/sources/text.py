"""Strings of a row: read, checked for visible characters, and shown in messages."""

from __future__ import annotations

import reprlib
import unicodedata
from collections.abc import Iterable
from itertools import islice
from typing import Any

from data.sources.bad_rows import BadRow, UnusableRow

SHORT = reprlib.Repr()  # it ends, however deep or long a value is
SHORT.maxstring = SHORT.maxother = 70
# Unicode's ignorable characters other than control and format ones, and the empty Braille pattern.
_FILLERS = frozenset(
    [
        *"\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0",
        *map(chr, range(0xFE00, 0xFE10)),  # variation selectors
        *map(chr, range(0xE0100, 0xE01F0)),
    ]
)


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: it is empty, or has only blanks and other invisible characters."""
    return all(
        letter.isspace() or letter in _FILLERS or unicodedata.category(letter) in ("Cc", "Cf")
        for letter in text
    )


def collapsed(text: str) -> str:
    """The text with one space for each run of blanks, and none at its ends."""
    return " ".join(text.split())


def after(prompt: str, answer: str) -> str:
    """A stripped answer as it continues the text `prompt`: after a blank, if it begins with a word.

    Scripts such as Chinese, whose letters are wide, have no blanks between words.
    """
    first, last = answer[:1], prompt[-1:]
    is_word = first.isalnum() and unicodedata.east_asian_width(first) not in "WF"
    return f" {answer}" if is_word and last and not last.isspace() else answer


def read_string(value: Any, key: str) -> str:
    """Return `value` if it is text that a tokenizer can read.

    Raises:
        BadRow: it is not text, or holds half of a surrogate pair.
        UnusableRow: it holds a NUL character.
    """
    if not isinstance(value, str):
        raise BadRow(f"`{key}` must be text, not {shown(value)}")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise BadRow(f"`{key}` holds half of a surrogate pair, which no tokenizer can read")
    if "\0" in value:
        raise UnusableRow(f"`{key}` holds a NUL character, as damaged files do")
    return value


def shown(value: Any) -> str:
    """A short form of `value` for error messages."""
    text = SHORT.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def listed(keys: Iterable[str]) -> str:
    """The first keys for error messages, without control characters."""
    first = list(islice(keys, 13))
    names = ", ".join(f"`{shown(key)[1:-1]}`" for key in first[:12]) or "none"
    return names + (", ..." if len(first) > 12 else "")


def counted(number: int, noun: str) -> str:
    """A number with its noun, which takes an s: "1 prompt", "2,000 prompts"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
