"""Load the rows of a source as demonstrations, rankings or prompts, and count where they go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from configs.errors import UserError
from configs.schema import Source
from configs.task_file import read_task
from data.sources.bad_rows import BadRow, LeftOut, Tied, UnusableRow
from data.sources.folders import size_of
from data.sources.formats import ACCEPTED, Kind, Row
from data.sources.keys import SPLIT, key_of, names_in, opened
from data.sources.normalise import Reading, read_row
from data.sources.reading import describe, read, where
from data.sources.tasks import labelled_row, origin_of_labelled
from data.sources.text import listed

MAX_UNUSABLE_SHARE = 0.01  # published data has a few such rows (Anthropic HH 0.25 %); more mean a mistake
MAX_FAULTS_SHOWN = 5
MAX_BYTES = 64 * 2**20  # checks and previews read only some rows of larger sources
SOME_ROWS = 1_000
Fault = tuple[str, str]  # place and reason


class Loaded(NamedTuple):
    """Rows of one kind, and the number of rows that the source gave for them, used or not.

    `reasons` counts those that are left out as `rows_unusable`, `rows_tied` and `rows_unwanted`.
    """

    rows: list[Row]
    read: int
    left_out: int
    of_other_stages: int
    reasons: Counter[str]


def everything(row: Row) -> bool:
    """Every row belongs to the stage."""
    return True


def load_rows(
    source: Source, kind: Kind, note: Callable[[str], None], belongs: Callable[[Row], bool] = everything
) -> Loaded:
    """Return the first `source.limit` rows that belong to a stage, as demonstrations, rankings or prompts.

    demonstrations: {"prompt", "completion", "where"}, and "learned" if SFT learns earlier turns, too
    rankings: {"prompt", "completions", "ranks", "where"}: completions best first, equal ranks tie
    prompts: {"prompt", "where"}

    A prompt and its completions are either all text or all lists of messages. A completion is one assistant
    turn. A row of a task has no texts before it is worded (see `labelled_row`). `where` names the row in
    messages. Rows without anything to learn (UnusableRow, LeftOut) are left out, and `note` is called with
    a line about them, with one about rows that have a `split` of their own, and with one that names the keys
    of `ORIGIN` that are not read. A last one counts the rows without a `label` beside those that have one.
    Nothing is read beyond the limit.

    Raises:
        UserError: there are no rows, a row cannot be read, over 1 % are unusable, or nothing is left. The
            message has the places and reasons of the first five faults.
    """
    rows: list[Row] = []
    faults = _Faults()
    total = others = assigned = rated = unrated = 0
    unseen = {**dict.fromkeys(source.ignore_columns, "ignore_columns"), **_columns(source)}
    unread: dict[str, None] = {}
    columns, may_rate = source.columns.names, kind == "demonstrations" and not source.task
    for example, row, origin in _normalised(source, kind, faults):
        total += 1
        for name in unseen.keys() & set(names_in(example)) if unseen else ():
            del unseen[name]
        is_rated = may_rate and _has_label(example, source, columns)
        rated += is_rated
        if row is None:
            continue
        unrated += not is_rated and {"chosen", "completions"}.isdisjoint(example)
        assigned += SPLIT in example
        unread |= dict.fromkeys(origin)
        if not belongs(row):
            others += 1
            continue
        rows.append(row)
        if len(rows) == source.limit:
            break
    _check(source, kind, total, faults)
    if unseen and len(rows) != source.limit:  # beyond the limit, a row may have them
        key = min(unseen.values())
        names = sorted(name for name, named_by in unseen.items() if named_by == key)
        raise UserError(f"{describe(source)}: `{key}` names {listed(names)}, which no row has.")
    left_out = [*faults.unusable, *faults.left_out]
    for remark in _remarks(assigned if SPLIT not in source.ignore_columns else 0, unread, left_out, total):
        note(f"{describe(source)}: {remark}")
    if rated and unrated:
        note(
            f"{describe(source)}: {unrated:,} of {total:,} rows have no `label`, as other rows do, and count "
            "as good answers. Remove them if they are not."
        )
    return Loaded(rows, total, len(left_out), others, faults.by_reason)


def _remarks(assigned: int, unread: Collection[str], left_out: Sequence[Fault], total: int) -> Iterator[str]:
    """What a person should know of the rows of a source.

    Args:
        assigned: the number of rows with a split of their own.
        unread: the keys of `ORIGIN` that are not read.
    """
    if assigned:
        yield (
            f"{assigned:,} rows have `{SPLIT}`, which is ignored: `held_out` of this source says how many "
            "prompts are held out, and a hash of each prompt which ones."
        )
    if unread:
        yield f"not read: {listed(unread)}"
    if left_out:
        yield f"left out {len(left_out)} of {total} rows.\n{_grouped(left_out)}"


def _has_label(example: Mapping[str, Any], source: Source, columns: Mapping[str, str]) -> bool:
    """Whether a row rates its answer. `columns` are those of the source, by the row's names."""
    return any(
        key_of(name, columns) == "label" and value not in (None, "", [], {})
        for name, value in example.items()
        if name not in source.ignore_columns
    )


def is_large(source: Source) -> bool:
    """Whether checks and previews read only some rows of the source."""
    return size_of(source.path) > MAX_BYTES


def first_rows(source: Source, kind: Kind, count: int) -> list[Row]:
    """The usable rows among the first `count` of a source, as `load_rows` returns them.

    Raises:
        UserError: there are no rows, or one cannot be read; or none can be used, and not by their own word.
    """
    faults = _Faults()
    rows = [row for _, row, _ in islice(_normalised(source, kind, faults), count) if row is not None]
    if faults.unreadable or not (rows or faults.left_out):
        _check(source, kind, len(rows) + faults.count, faults)
    return rows


@dataclass
class _Faults:
    unreadable: list[Fault] = field(default_factory=list)
    unusable: list[Fault] = field(default_factory=list)
    left_out: list[Fault] = field(default_factory=list)
    tied: int = 0

    @property
    def by_reason(self) -> Counter[str]:
        """How many rows are left out: damaged or empty, rankings without a pair, and what the data reject."""
        unwanted = len(self.left_out) - self.tied
        return Counter(rows_unusable=len(self.unusable), rows_tied=self.tied, rows_unwanted=unwanted)

    @property
    def count(self) -> int:
        return len(self.unreadable) + len(self.unusable) + len(self.left_out)

    def add(self, place: str, fault: BadRow) -> None:
        if isinstance(fault, LeftOut):
            self.left_out.append((place, str(fault)))
            self.tied += isinstance(fault, Tied)
        elif isinstance(fault, UnusableRow):
            self.unusable.append((place, str(fault)))
        else:
            self.unreadable.append((place, str(fault)))


class _Normalised(NamedTuple):
    """A row as it was read ({} if it could not be), and as one of its kind, or None and one fault more.

    `origin` are its keys that tell where it is from, and are not read.
    """

    example: Mapping[str, Any]
    row: Row | None = None
    origin: Sequence[str] = ()


def _normalised(source: Source, kind: Kind, faults: _Faults) -> Iterator[_Normalised]:
    task = read_task(source.task, "task") if source.task else None
    if task and kind == "rankings":
        raise UserError(f"{describe(source)}: a task has one answer to a prompt, and rankings need several.")
    reading = Reading(
        ignored=frozenset(source.ignore_columns),
        columns=source.columns.names,
        format=source.format,
        rank_by=source.rank_by,
        min_rating=source.min_rating if kind == "demonstrations" else None,
    )
    for place, example in read(source):
        if isinstance(example, BadRow):
            faults.add(place, example)
            yield _Normalised({})
            continue
        values: Mapping[str, Any] = example
        try:
            if task:
                row = labelled_row(example, task, reading.ignored)
                origin = origin_of_labelled(example, task, reading.ignored)
            else:
                values = opened(example, reading.ignored, reading.columns)
                row, origin = read_row(values, kind, reading)
        except BadRow as fault:
            faults.add(place, fault)
            yield _Normalised(values)
        else:
            yield _Normalised(values, {**row, "where": where(source, place)}, origin)


def _columns(source: Source) -> dict[str, str]:
    return dict.fromkeys(source.columns.names, "columns")


def _check(source: Source, kind: Kind, total: int, faults: _Faults) -> None:
    """Raise UserError if the source holds no rows, bad ones, or only such that are left out."""
    if total == 0:
        raise UserError(f"{describe(source)}: it holds no rows. Point `data` at a source that has some.")
    bad = faults.unreadable + faults.unusable
    if len(faults.left_out) + len(bad) == total:
        bad += faults.left_out
    elif not faults.unreadable and len(faults.unusable) <= MAX_UNUSABLE_SHARE * total:
        return
    accepted = f"Accepted as {kind}: {ACCEPTED[kind]}."
    if source.task:
        accepted = f"The templates of {source.task} say which columns they need."
    raise UserError(
        f"{describe(source)}: {len(bad)} of {total} rows cannot serve as {kind}.\n{_grouped(bad)}\n"
        f"Correct or remove them. {accepted}"
    )


def _grouped(faults: Iterable[Fault]) -> str:
    """One line for each reason, with the first place and the number of rows; at most the first five."""
    places: dict[str, list[str]] = {}
    for place, reason in faults:
        places.setdefault(reason, []).append(place)
    lines = [f"  {_places(found)}: {reason}" for reason, found in places.items()]
    more = len(lines) - MAX_FAULTS_SHOWN
    return "\n".join(lines[:MAX_FAULTS_SHOWN] + ([f"  and {more} more reasons"] if more > 0 else []))


def _places(places: Sequence[str]) -> str:
    return places[0] if len(places) == 1 else f"{places[0]} and {len(places) - 1} more"
