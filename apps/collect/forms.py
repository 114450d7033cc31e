"""The bodies of requests of the labelling page."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from apps.collect.desk import Answer
from apps.web.body import Form
from data.people.events import HIGHEST, LOWEST, MOST_LETTERS, SkipReason
from data.people.round import MOST_RANKED

Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{8,64}$")]
Seconds = Annotated[float, Field(ge=0, le=10**6)]


class NothingForm(Form):
    """POST /api/next and /api/undo."""


class HoldForm(Form):
    """POST /api/hold."""

    showing: Id


class SubmitForm(Form):
    """POST /api/submit; see `Answer`."""

    showing: Id
    submission: Id
    seconds: Seconds
    ranks: (
        Annotated[list[Annotated[int, Field(ge=1, le=MOST_RANKED)]], Field(max_length=MOST_RANKED)] | None
    ) = None
    rating: Annotated[int, Field(ge=LOWEST, le=HIGHEST)] | None = None
    text: Annotated[str, Field(max_length=MOST_LETTERS)] | None = None
    demonstration: Annotated[str, Field(max_length=MOST_LETTERS)] | None = None

    def answer(self) -> Answer:
        """What the desk takes."""
        return Answer(**dict(self))


class SkipForm(Form):
    """POST /api/skip."""

    showing: Id
    submission: Id
    seconds: Seconds
    reason: SkipReason
    note: Annotated[str, Field(max_length=2_000)] = ""
