"""Split prompts among stages, and the prompts of a stage into training and held-out ones, by hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

from configs.errors import UserError
from configs.schema import STAGES, Data, Source, Stage
from data.sources.formats import Row
from data.sources.messages import Text
from data.sources.reading import describe


def prompt_key(prompt: Text) -> str:
    """The identity of a prompt. Whitespace does not count; text equals one user message with that text."""
    if isinstance(prompt, str):
        return " ".join(prompt.split())
    if [message["role"] for message in prompt] == ["user"]:
        return " ".join(prompt[0]["content"].split())
    turns = [[message["role"], " ".join(message["content"].split())] for message in prompt]
    return json.dumps(turns, ensure_ascii=False)


def row_key(row: Row) -> str:
    """The identity of a row's prompt; of its text without a prompt; of its columns if it is of a task."""
    return row["key"] if "key" in row else prompt_key(row["prompt"] or row["completion"])


def stage_split(data: Data, stage: Stage, rows: Sequence[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """Return `(train, held_out)` rows of the stage, each in the order of `rows`.

    If stages read the same source, each prompt belongs to one of them (see `stage_interval`). Of the stage's
    distinct prompts, `held_out` are kept for evaluation: a share, rounded but at least one prompt, or a
    number. All rows of a prompt are on one side. The side depends on the seed and the prompt, not on the
    order of rows.

    Raises:
        UserError: no prompt is left to train on, or the stage has no share of a shared source.
    """
    belongs = belongs_to(data, stage, seed)
    of_stage = [(row_key(row), row) for row in rows if belongs(row)]
    prompts = sorted({key for key, _ in of_stage}, key=lambda key: (unit(seed, "held_out", key), key))
    source = data.source(stage)
    count = _held_out_count(source, len(prompts))
    if count >= len(prompts):
        raise UserError(
            f"data.{stage}: the stage's part of {describe(source)} has {len(prompts)} prompts, and held_out "
            f"takes {count}, which leaves none to train on. Lower data.{stage}.held_out, raise "
            f"data.{stage}.limit or data.shares.{stage}, or give it more rows."
        )
    held_out = set(prompts[:count])
    train = [row for key, row in of_stage if key not in held_out]
    return train, [row for key, row in of_stage if key in held_out]


def belongs_to(data: Data, stage: Stage, seed: int) -> Callable[[Row], bool]:
    """Whether a row's prompt belongs to the stage (see `stage_interval`)."""
    low, high = stage_interval(data, stage)
    return lambda row: low <= unit(seed, "stage", row_key(row)) < high


def stage_interval(data: Data, stage: Stage) -> tuple[float, float]:
    """The interval of [0, 1) that belongs to the stage. A prompt's hash places it in [0, 1).

    It is all of [0, 1) if no other stage reads the source. Stages that read the same path, name, split and
    revision get disjoint intervals in proportion to their `shares`. If the three shares sum to less than 1,
    the rest is unused.
    """
    shares, source = data.shares, data.source(stage).identity
    readers = [other for other in STAGES if data.source(other).identity == source]
    if len(readers) == 1:
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


def _others(readers: Sequence[Stage], stage: Stage) -> str:
    return " and ".join(f"data.{other}" for other in readers if other != stage)


def unit(seed: int, purpose: str, key: str) -> float:
    """A pseudo-random number in [0, 1) that depends only on the arguments."""
    digest = hashlib.sha256(f"{seed}\n{purpose}\n{key}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def _held_out_count(source: Source, prompts: int) -> int:
    if source.held_out == 0:
        return 0
    if source.held_out >= 1:
        return round(source.held_out)
    return max(1, round(source.held_out * prompts))
