"""Split prompts among stages, and the prompts of a stage into training and held-out ones, by hash."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Literal, NamedTuple, TypeVar, get_args

from configs.errors import UserError
from configs.schema import STAGES, Data, Source, Stage
from data.sources.formats import Row
from data.sources.messages import Text
from data.sources.reading import describe
from data.sources.text import counted
from data.sources.unit import unit

T = TypeVar("T")


def prompt_key(prompt: Text) -> str:
    """The identity of a prompt. Whitespace does not count; text equals one user message with that text."""
    if isinstance(prompt, str):
        return " ".join(prompt.split())
    if [message["role"] for message in prompt] == ["user"]:
        return " ".join(prompt[0]["content"].split())
    turns = [[message["role"], " ".join(message["content"].split())] for message in prompt]
    return json.dumps(turns, ensure_ascii=False)


def question_key(prompt: Text) -> str:
    """The identity of a prompt among stages: that of its turns, without system messages."""
    if isinstance(prompt, str):
        return prompt_key(prompt)
    return prompt_key([message for message in prompt if message["role"] != "system"])


def first_of_each_prompt(items: Sequence[T], prompt_of: Callable[[T], Text]) -> list[T]:
    """The first item of each prompt, in order."""
    found: dict[str, T] = {}
    for item in items:
        found.setdefault(prompt_key(prompt_of(item)), item)
    return list(found.values())


def row_key(row: Row) -> str:
    """The identity of a row's prompt; of its text without a prompt; of its columns if it is of a task."""
    return row["key"] if "key" in row else prompt_key(row["prompt"] or row["completion"])


def row_question(row: Row) -> str:
    """The identity of a row's prompt among stages: `row_key` without system messages."""
    return row["key"] if "key" in row else question_key(row["prompt"] or row["completion"])


Side = Literal["train", "held_out", "apart"]  # apart: neither


class Sides(NamedTuple):
    """Questions (see `question_key`) that stages train on, and those that they hold out.

    One is in both only if a stage trains on it under one system message and holds it out under another.
    """

    trained: frozenset[str] = frozenset()
    held_out: frozenset[str] = frozenset()


class Split(NamedTuple):
    """Rows to train on and rows held out, each in the order of the rows; `sides` are of this stage alone.

    `apart` are rows that serve neither. `turns` counts turns that are context only. `missing` counts prompts
    that were to be held out and are not, since an earlier stage trains on them: see `stage_split`.
    """

    train: list[Row]
    held_out: list[Row]
    apart: list[Row]
    turns: int
    missing: int
    sides: Sides


NO_SIDES = Sides()


def stage_split(data: Data, stage: Stage, rows: Sequence[Row], seed: int, earlier: Sides = NO_SIDES) -> Split:
    """Split the rows of a stage into those to train on and held-out ones.

    If stages read the same source, each prompt belongs to one of them (see `stage_interval`). Of the distinct
    prompts of each source of the stage, `held_out` are kept for evaluation: a share, rounded but at least one
    prompt, or a number. All rows of a prompt are on one side. The side depends on the seed and the prompt,
    not on the order of rows. A prompt of several sources counts for the first of them. A source that is held
    out whole counts before the others, and nothing of it is trained on.

    A prompt that an earlier stage trains on is not held out. Of those that an earlier stage holds out, as
    many are held out as `held_out` asks for, before all others; the rest is `apart`. An earlier turn of a
    conversation is learned only if its prompt is not held out, and judged only if it is not learned. Here,
    and not in the hash, one question under two system messages is the same.

    Args:
        rows: `source` of a row is the label of its source, which may be missing if there is one source.
        earlier: the sides of the stages before this one.

    Raises:
        UserError: no prompt is left to train on, or none that no stage has trained on is left to hold out, or
            the stage has no share of a shared source.
    """
    side: dict[str, Side] = {}
    own: list[tuple[str, Row]] = []
    asked = 0
    for part in data.claims(stage):
        belongs = belongs_to(data, stage, seed, part.source)
        of_source = [row for row in rows if row.get("source", "") == part.label and belongs(row)]
        keyed = [(row_key(row), row) for row in of_source]
        asks = {key: row_question(row) for key, row in keyed if key not in side}
        new, kept = set(asks), {key for key, question in asks.items() if question in earlier.held_out}
        free = sorted(
            (key for key in new if asks[key] not in earlier.trained),
            key=lambda key: (unit(seed, "held_out", key), key),
        )
        free.sort(key=lambda key: key not in kept)  # these first, in the order of their hashes
        count = part.source.held_out_of(len(new)) if new else 0
        if part.label and count > len(new):
            raise UserError(
                f"{part.key}: it has {counted(len(new), 'prompt')} of its own, and held_out takes {count}, "
                f"which leaves none to train on. Lower {part.key}.held_out."
            )
        asked, chosen = asked + count, set(free[:count])
        untrained = new if part.source.held_out == "all" else kept
        side |= {
            key: "held_out" if key in chosen else "apart" if key in untrained else "train" for key in new
        }
        own += keyed
    sides = list(side.values())
    _check_sides(data, stage, sides, asked)
    missing = asked - sides.count("held_out")
    train, judged, apart = ([row for key, row in own if side[key] == each] for each in get_args(Side))
    if not data.keep_apart:
        return Split(train, judged, apart, 0, missing, NO_SIDES)
    if data.train_on == "last":
        return Split(train, judged, apart, 0, missing, Sides(_questions(train), _questions(judged)))
    train, trained, unlearned = _without_turns(train, earlier.held_out | _questions(judged))
    judged, held_out, unjudged = _without_turns(judged, earlier.trained | trained)
    return Split(train, judged, apart, unlearned + unjudged, missing, Sides(trained, held_out))


def _questions(rows: Iterable[Row]) -> frozenset[str]:
    return frozenset(map(row_question, rows))


def _without_turns(rows: Sequence[Row], excluded: Set[str]) -> tuple[list[Row], frozenset[str], int]:
    """Rows whose earlier turns are learned (or judged) only if their prompts are not excluded.

    Returns:
        The rows, the questions whose answers are learned, and the number of turns whose are not.
    """
    found, keys, without = [], set(_questions(rows)), 0
    for row in rows:
        if "learned" in row:
            prompts = {position: question_key(row["prompt"][:position]) for position in row["learned"]}
            learned = [position for position, key in prompts.items() if key not in excluded]
            without += len(prompts) - len(learned)
            keys.update(prompts[position] for position in learned)
            row = {**row, "learned": learned} if len(learned) < len(prompts) else row
        found.append(row)
    return found, frozenset(keys), without


def _check_sides(data: Data, stage: Stage, sides: Sequence[Side], asked: int) -> None:
    """Raise UserError if the prompts of a stage leave none to train on, or none to hold out."""
    sources = data.sources(stage)
    of = f"the stage's part of {' and '.join(map(describe, sources))} has {counted(len(sides), 'prompt')}"
    if "train" not in sides or asked >= len(sides):
        if "apart" in sides and asked < len(sides):
            raise UserError(
                f"data.{stage}: {of}, and earlier stages hold all of them out, which leaves none to train "
                "on. Give it other prompts, or set data.keep_apart to false."
            )
        if any(source.held_out == "all" for source in sources):
            raise UserError(
                f"data.{stage}: {of}, and held_out takes all of them: the sources to train on have no prompt "
                "that the one with held_out: all has not. Give them other prompts."
            )
        raise UserError(
            f"data.{stage}: {of}, and held_out "
            f"takes {asked}, which leaves none to train on. Lower data.{stage}.held_out, raise "
            f"data.{stage}.limit or data.shares.{stage}, or give it more rows."
        )
    if "held_out" not in sides and any(source.held_out for source in sources):
        raise UserError(
            f"data.{stage}: {of}, and earlier stages train on all of them, which leaves none to hold out. "
            "Raise held_out of earlier stages, set that of this one to 0, or set data.keep_apart to false."
        )


def belongs_to(data: Data, stage: Stage, seed: int, source: Source) -> Callable[[Row], bool]:
    """Whether the prompt of a row of `source` belongs to the stage (see `stage_interval`)."""
    low, high = stage_interval(data, stage, source)
    return lambda row: low <= unit(seed, "stage", row_key(row)) < high


def stage_interval(data: Data, stage: Stage, source: Source) -> tuple[float, float]:
    """The interval of [0, 1) that belongs to the stage. A prompt's hash places it in [0, 1).

    It is all of [0, 1) if no other stage reads the source. Stages that read the same path, name, split and
    revision get disjoint intervals in proportion to their `shares`. If the three shares sum to less than 1,
    the rest is unused.
    """
    shares, readers = data.shares, data.readers(source)
    if readers in ([], [stage]):
        return 0.0, 1.0
    total = sum(shares.of(other) for other in readers)
    if shares.of(stage) == 0:
        raise UserError(
            f"data.shares.{stage} is 0, but data.{stage} reads the same source as "
            f"{_others(readers, stage)}. Give it a share, or another source."
        )
    scale = sum(map(shares.of, STAGES)) / total
    before = sum(shares.of(other) for other in readers[: readers.index(stage)])
    high = (before + shares.of(stage)) * scale
    return before * scale, 1.0 if high > 1 - 1e-9 else high  # in floats 0.2 + 0.4 + 0.4 is not exactly 1


def share_prompts_by_hash(data: Data, one: Stage, other: Stage) -> bool:
    """Whether two stages read the same sources alike, so that no prompt belongs to both.

    If SFT learns earlier turns, it also learns answers to prompts that may belong to the other stage.
    """
    if data.train_on == "all" and "sft" in (one, other):
        return False
    sources = [
        {(*source.identity, source.columns, source.format) for source in data.sources(stage)}
        for stage in (one, other)
    ]
    readers = [data.readers(source) for stage in (one, other) for source in data.sources(stage)]
    return sources[0] == sources[1] and all(each == readers[0] for each in readers)


def weighted(rows: Sequence[Row], weight: float, seed: int) -> list[Row]:
    """The rows as often as `weight` says: each `floor(weight)` times, and a share of them once more.

    Which ones depends on the seed and on the row's content.
    """
    whole, more = divmod(weight, 1)
    if not more:
        return [row for row in rows for _ in range(int(whole))]
    order = sorted(range(len(rows)), key=lambda i: (unit(seed, "weight", _content(rows[i])), i))
    once_more = set(order[: round(more * len(rows))])
    return [row for i, row in enumerate(rows) for _ in range(int(whole) + (i in once_more))]


def _content(row: Row) -> str:
    return json.dumps(
        {key: value for key, value in row.items() if key not in ("where", "source")}, sort_keys=True
    )


def _others(readers: Sequence[Stage], stage: Stage) -> str:
    return " and ".join(f"data.{other}" for other in readers if other != stage)
