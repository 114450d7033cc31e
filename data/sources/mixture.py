"""The rows of all sources of a stage: labelled, and without the copies that several sources have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from configs.errors import UserError
from configs.schema import Data, Part, Stage
from data.sources.formats import Kind, Row
from data.sources.loading import Loaded, load_rows
from data.sources.messages import last_text
from data.sources.split import Split, belongs_to, row_key, weighted
from data.sources.text import collapsed

T = TypeVar("T")


class Mixture(NamedTuple):
    """The rows of a stage's sources in order, and how many were read and left out, by label of the source.

    Of several sources, each row has its label as `source`.
    """

    rows: list[Row]
    counts: dict[str, Counter[str]]


def load_mixture(data: Data, stage: Stage, kind: Kind, seed: int, note: Callable[[str], None]) -> Mixture:
    """Load the rows of a stage that belong to it. See `load_rows`.

    A row is a copy if an earlier source has its prompt with the same answers. Copies are dropped. The same
    prompt with other answers stays.

    Raises:
        UserError: a row cannot be read, or nothing is left.
    """
    rows: list[Row] = []
    counts: dict[str, Counter[str]] = {}
    prompts, contents = set[str](), set[Hashable]()
    for part in data.claims(stage):
        loaded = load_rows(part.source, kind, note, belongs_to(data, stage, seed, part.source))
        keyed = [(row_key(row), _content(row), row) for row in loaded.rows]
        kept = [row for _, content, row in keyed if content not in contents]
        again = sum(key in prompts and content not in contents for key, content, _ in keyed)
        rows += [{**row, "source": part.label} for row in kept] if part.label else kept
        counts[part.label] = _counts(loaded, len(keyed) - len(kept), again)
        prompts.update(key for key, _, _ in keyed)
        contents.update(content for _, content, _ in keyed)
    return Mixture(rows, counts)


def _content(row: Row) -> Hashable:
    """What a stage learns from a row: its prompt, and its answers with their ranks."""
    answers = row.get("completions") or ([row["completion"]] if "completion" in row else [])
    ranks = row.get("ranks") or [0] * len(answers)
    texts = (collapsed(last_text(answer)) for answer in answers)
    return row_key(row), tuple(sorted(zip(ranks, texts, strict=True)))


def _counts(loaded: Loaded, copies: int, again: int) -> Counter[str]:
    return Counter(
        {
            "rows_read": loaded.read,
            "rows_left_out": loaded.left_out,
            **loaded.reasons,
            "rows_of_other_stages": loaded.of_other_stages,
            "rows_repeated": copies,
            "rows_of_known_prompts": again,
        }
    )


def label_of(row: Row) -> str:
    """The label of a row's source; "" if the stage has only one."""
    label: str = row.get("source", "")
    return label


def first_of_each(rows: Sequence[T], number: int, source_of: Callable[[T], str]) -> list[T]:
    """At most `number` rows: the first of each source in turn, then the second of each, and so on.

    Rows of one source keep their order.

    Args:
        source_of: the label of a row's source.
    """
    places: Counter[str] = Counter()
    turns = []
    for row in rows:
        source = source_of(row)
        turns.append((places[source], row))
        places[source] += 1
    return [row for _, row in sorted(turns, key=lambda turn: turn[0])][:number]


def reweighted(data: Data, stage: Stage, split: Split, seed: int, *, once: bool = False) -> Split:
    """The split with the training rows of each source as often as its weight says.

    Args:
        once: none is repeated. A prompt is answered once, and `repeated` is for what comes of it.
    """
    parts: list[Row] = []
    for part in data.parts(stage):
        of_source = [row for row in split.train if label_of(row) == part.label]
        weight = min(1.0, part.source.weight) if once else part.source.weight
        kept = weighted(of_source, weight, seed)
        if of_source and not kept:
            raise UserError(
                f"{part.key}.weight: {part.source.weight:g} of {len(of_source)} rows leaves none to train "
                "on. Raise it, or leave the source out."
            )
        parts += kept
    return split._replace(train=parts)


def repeated(data: Data, stage: Stage, rows: Sequence[Row], seed: int) -> list[Row]:
    """What came of each training prompt, in order, as often as the weight of its source says.

    A weight below 1 has left prompts out before.
    """
    times: Counter[int] = Counter()
    for part in data.parts(stage):
        of_source = [row for row in rows if label_of(row) == part.label]
        times.update(map(id, weighted(of_source, max(1.0, part.source.weight), seed)))
    return [row for row in rows for _ in range(max(1, times[id(row)]))]


def count_split(counts: Mapping[str, Counter[str]], split: Split) -> None:
    """Add to the counts of each source the rows that are trained on, held out, and neither."""
    for name, rows in _named(split):
        for row in rows:
            counts[label_of(row)][name] += 1


def _named(split: Split) -> Iterable[tuple[str, list[Row]]]:
    return ("rows_train", split.train), ("rows_held_out", split.held_out), ("rows_kept_apart", split.apart)


def as_metrics(counts: Mapping[str, Counter[str]]) -> dict[str, int]:
    """The counts of rows by name; see `by_source`.

    Counts that only a mixture has, or an overlap of stages, are left out if they are 0.
    """

    def shown(of_rows: Counter[str], if_any: Sequence[str]) -> dict[str, int]:
        return {name: of_rows[name] for name in (*ALWAYS, *if_any) if name in ALWAYS or of_rows[name]}

    total: Counter[str] = sum(counts.values(), Counter())
    parts = {label: shown(of_rows, (*IF_ANY, *OF_SOURCES)) for label, of_rows in counts.items()}
    return by_source(shown(total, IF_ANY), parts)


def by_source(total: Mapping[str, int], parts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """The counts over all sources, and of several sources those of each, as `sources/LABEL/NAME`."""
    return dict(total) | {
        f"sources/{label}/{name}": number
        for label, counts in parts.items()
        if label
        for name, number in counts.items()
    }


REASONS = ("rows_unusable", "rows_tied", "rows_unwanted")  # of `rows_left_out`
ALWAYS = ("rows_read", "rows_left_out", "rows_of_other_stages")
IF_ANY = (*REASONS, "rows_repeated", "rows_of_known_prompts", "rows_kept_apart")
OF_SOURCES = ("rows_train", "rows_held_out")


def sentence(part: Part, counts: Counter[str]) -> str:
    """What became of the rows of a source, for people."""
    text = (
        f"{part.key}: {counts['rows_read']:,} rows read, {counts['rows_left_out']:,} left out, "
        f"{counts['rows_of_other_stages']:,} of other stages"
    )
    if counts["rows_repeated"]:
        text += f", {counts['rows_repeated']:,} dropped, which another source has"
    if counts["rows_kept_apart"]:
        text += f", {counts['rows_kept_apart']:,} dropped, to keep prompts apart from other stages"
    text += f"; {counts['rows_train']:,} to train on, {counts['rows_held_out']:,} held out"
    if counts["rows_of_known_prompts"]:
        text += f"; {counts['rows_of_known_prompts']:,} have a prompt of an earlier source, and other answers"
    return text
