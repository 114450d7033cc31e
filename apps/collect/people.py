"""Who may label: people of a file, each with a token, or anybody on this machine who gives a name."""

from __future__ import annotations

import re
import secrets
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from starlette.datastructures import Headers

from apps.web.guard import given_key
from configs.errors import UserError
from configs.regular_file import read_regular_file
from configs.safe_text import keep_secret

MOST_NAME = 40  # characters
NAME_SIGNS = " _.@'’-"  # beside letters of any script, their marks, and digits
TOKEN = re.compile(r"[A-Za-z0-9_-]{16,128}")
LEAD = "lead"


@dataclass(frozen=True)
class Person:
    """Somebody who labels.

    Attributes:
        lead: may see what all have done.
    """

    name: str
    lead: bool = False


class People:
    """Finds out who sends a request.

    Attributes:
        by_token: the people of a file; empty if anybody may give a name.
    """

    def __init__(self, by_token: Mapping[str, Person]) -> None:
        self.by_token = dict(by_token)
        self._spellings: dict[str, str] = {}

    def spelling(self, name: str) -> str:
        """A name as it was first written: Anna and anna are one person."""
        return self._spellings.setdefault(name.casefold(), name)

    def who(self, headers: Headers) -> Person | None:
        """Who sends a request; None if it does not say, or gives no known token."""
        if self.by_token:
            token = given_key(headers, self.by_token)
            if token is None:
                return None
            person = self.by_token[token]
            return Person(self.spelling(person.name), person.lead)
        name = _normal(unquote(headers.get("x-labeller", "")))
        return Person(self.spelling(name), lead=True) if _is_name(name) else None


def _normal(name: str) -> str:
    """A name with single blanks, its letters composed with their marks."""
    return unicodedata.normalize("NFC", " ".join(name.split()))


def _is_name(text: str) -> bool:
    """Whether a text begins with a letter or digit, and has only those, their marks, and NAME_SIGNS."""
    kinds = [unicodedata.category(letter)[0] for letter in text]
    known = all(kind in "LMN" or letter in NAME_SIGNS for kind, letter in zip(kinds, text, strict=True))
    return 0 < len(text) <= MOST_NAME and kinds[0] in "LN" and known


def read_people(file: Path | None) -> People:
    """The people of a file: in each line a name, a token, and `lead` if the person may see all progress.

    Raises:
        UserError: the file cannot be read, is empty, or a line is not of this form.
    """
    if file is None:
        return People({})
    try:
        lines = read_regular_file(file).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--labellers: {file!s:.200}: cannot be read: {error!s:.150}.") from None
    by_token: dict[str, Person] = {}
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            token, person = _person(line.split(), f"--labellers: {file!s:.200}, line {number}")
            names = {one.name.casefold() for one in by_token.values()}
            if token in by_token or person.name.casefold() in names:
                raise UserError(
                    f"--labellers: {file!s:.200}, line {number}: the name or the token stands there twice."
                )
            by_token[token] = person
    if not by_token:
        raise UserError(f"--labellers: {file!s:.200}: nobody is in it. Write a line such as: {_example()}")
    return People(by_token)


def _person(words: list[str], where: str) -> tuple[str, Person]:
    lead = words[-1] == LEAD and len(words) > 2
    *parts, token = words[:-1] if lead else words
    name = _normal(" ".join(parts))
    if not TOKEN.fullmatch(token) or not _is_name(name):
        raise UserError(
            f"{where}: a line has a name, and a token of at least 16 letters and digits. For example: "
            f"{_example(words[0])}"
        )
    keep_secret(token)
    return token, Person(name, lead)


def _example(name: str = "anna") -> str:
    """A line with a new token."""
    return f"{name if _is_name(name) else 'anna'} {secrets.token_urlsafe(18)}"
