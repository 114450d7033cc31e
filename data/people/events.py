"""The file of labels: one line for each thing that happened, in the order in which it happened.

A line is on the disk before anybody is told so, and no line is ever changed. To undo is a line, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from configs.errors import UserError
from configs.regular_file import read_regular_file
from data.storage.growing_file import append_line, drop_cut_line

MOST_LETTERS = 200_000  # of a demonstration
LOWEST, HIGHEST = 1, 7  # a rating, as in OpenAI's FeedME
SkipReason = Literal["unclear", "cannot_judge", "harmful", "other"]


def now() -> datetime:
    """The time in UTC, in whole milliseconds."""
    time = datetime.now(UTC)
    return time.replace(microsecond=time.microsecond // 1000 * 1000)


class Event(BaseModel):
    """Something happened to a showing: one task, shown to one person.

    Attributes:
        showing: its id.
        time: in UTC.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    showing: str
    time: datetime = Field(default_factory=now)


class Shown(Event):
    """A person got a task.

    Attributes:
        order: the positions of the task's answers, in the order in which the page shows them.
        again: the same person had this task before. The two labels tell how well a person agrees with itself.
    """

    event: Literal["shown"] = "shown"
    task: str
    labeller: str
    order: tuple[int, ...]
    again: bool = False


class Submitted(Event):
    """A person answered.

    Attributes:
        submission: made by the page, so that one sent twice counts once.
        seconds: spent on the task.
        ranks: of each of the task's answers, 0 for the best. Equal ranks tie. (rankings, pairs)
        rating: 1 to 7. (ratings)
        text: the demonstration. (demonstrations)
        demonstration: the best answer, as the person would have written it. (rankings)
    """

    event: Literal["submitted"] = "submitted"
    submission: str
    seconds: Annotated[float, Field(ge=0)]
    ranks: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    rating: Annotated[int, Field(ge=LOWEST, le=HIGHEST)] | None = None
    text: Annotated[str, Field(max_length=MOST_LETTERS)] | None = None
    demonstration: Annotated[str, Field(max_length=MOST_LETTERS)] | None = None

    @property
    def given(self) -> set[str]:
        """Which of the answers to a kind of task this is; see `round.GIVEN`."""
        answers = {"ranks": self.ranks, "rating": self.rating, "text": self.text}
        return {name for name, answer in answers.items() if answer is not None}


class Skipped(Event):
    """A person passed the task on."""

    event: Literal["skipped"] = "skipped"
    submission: str
    seconds: Annotated[float, Field(ge=0)]
    reason: SkipReason
    note: Annotated[str, Field(max_length=2_000)] = ""


class Undone(Event):
    """A person took back what it submitted to a showing."""

    event: Literal["undone"] = "undone"


AnyEvent = Annotated[Shown | Submitted | Skipped | Undone, Field(discriminator="event")]
EVENT: TypeAdapter[Shown | Submitted | Skipped | Undone] = TypeAdapter(AnyEvent)
Outcome = Submitted | Skipped


class Labels:
    """What the events of a file amount to.

    Attributes:
        showings: by id, in the order in which they were shown.
        outcomes: what came of a showing, by its id; the latest outcome last.
        undone: what came of a showing and was taken back, if nothing came of it since; the latest last.
        events: the number of events so far.
    """

    def __init__(self, events: Iterable[Shown | Submitted | Skipped | Undone] = ()) -> None:
        self.showings: dict[str, Shown] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.undone: dict[str, Outcome] = {}
        self._submissions: set[str] = set()
        self.events = 0
        for event in events:
            self.add(event)

    def add(self, event: Shown | Submitted | Skipped | Undone) -> None:
        """Take in one more event."""
        self.events += 1
        if isinstance(event, Shown):
            self.showings[event.showing] = event
            return
        earlier = self.outcomes.pop(event.showing, None)
        if not isinstance(event, Undone):
            self.undone.pop(event.showing, None)
            self.outcomes[event.showing] = event
            self._submissions.add(event.submission)
        elif earlier is not None:
            self.undone[event.showing] = earlier

    def snapshot(self) -> Labels:
        """The same labels, which later events do not change."""
        copied = Labels()
        copied.showings, copied.outcomes = dict(self.showings), dict(self.outcomes)
        copied.undone, copied.events = dict(self.undone), self.events
        copied._submissions = set(self._submissions)
        return copied

    def has(self, submission: str) -> bool:
        """Whether a submission is among the events, even if it was taken back since."""
        return submission in self._submissions

    def submitted(self) -> Iterator[tuple[Shown, Submitted]]:
        """Each showing that was answered, with its answer."""
        for showing, outcome in self.outcomes.items():
            if isinstance(outcome, Submitted):
                yield self.showings[showing], outcome

    def skipped(self) -> Iterator[tuple[Shown, Skipped]]:
        """Each showing that was skipped."""
        for showing, outcome in self.outcomes.items():
            if isinstance(outcome, Skipped):
                yield self.showings[showing], outcome


def read_events(file: Path) -> list[Shown | Submitted | Skipped | Undone]:
    """The events of a file; none if there is no file. A last line that a kill cut short does not count.

    Raises:
        UserError: another line is damaged, or a pipe or a folder is in the file's place.
    """
    if not file.exists():
        return []
    try:
        *lines, _ = read_regular_file(file).split(b"\n")
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}. Restore the file.") from None
    return [_read(line, f"{file}, line {number}") for number, line in enumerate(lines, 1)]


def _read(line: bytes, where: str) -> Shown | Submitted | Skipped | Undone:
    try:
        return EVENT.validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if part not in ("shown", "submitted", "skipped"))
        raise UserError(
            f"{where}: damaged ({key}{': ' if key else ''}{first['msg']:.150}). Restore the file, or remove "
            "the line: what it says is then lost."
        ) from None


class LabelFile:
    """Appends events to a file. One process writes it at a time; see `round.held_round`."""

    def __init__(self, file: Path) -> None:
        """Take over the file; see `drop_cut_line`."""
        self._file = file
        drop_cut_line(file)

    def append(self, event: Shown | Submitted | Skipped | Undone) -> None:
        """Write one event; see `append_line`."""
        append_line(self._file, event.model_dump_json(exclude_none=True).encode())
