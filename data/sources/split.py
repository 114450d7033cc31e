"""Divide prompts among stages, and each stage's prompts into training and held-out ones, by hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from configs.errors import UserError
from configs.schema import STAGES, Data, Source, Stage
from data.sources.formats import Row
from data.sources.messages import Text
from data.sources.reading import describe


def prompt_key(prompt: Text) -> str:
    """The identity of a prompt: equal for text and for one user message that says the same, blanks aside."""
    if isinstance(prompt, str):
        return " ".join(prompt.split())
    if [message["role"] for message in prompt] == ["user"]:
        return " ".join(prompt[0]["content"].split())
    turns = [[message["role"], " ".join(message["content"].split())] for message in prompt]
    return json.dumps(turns, ensure_ascii=False)


def stage_split(data: Data, stage: Stage, rows: Sequence[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """Return `(train, held_out)` of the stage's source, each in the order of `rows`.

    Where stages read one and the same source, a prompt first goes to one of them (see `stage_interval`). Of
    the stage's distinct prompts, `held_out` are kept for evaluation: that share of them, to the nearest whole
    number but at least one, or that number. All rows of a prompt are on one side; which side depends on the
    seed and the prompts, not on their order. Raises UserError when nothing is left to train on.
    """
    low, high = stage_interval(data, stage)
    keyed = [(prompt_key(row["prompt"]), row) for row in rows]
    mine = [(key, row) for key, row in keyed if low <= _unit(seed, "stage", key) < high]
    prompts = sorted({key for key, _ in mine}, key=lambda key: (_unit(seed, "held_out", key), key))
    source = data.source(stage)
    count = _held_out_count(source, len(prompts))
    if count >= len(prompts):
        raise UserError(
            f"data.{stage}: the stage's part of {describe(source)} has {len(prompts)} prompts, and held_out "
            f"takes {count}, which leaves none to train on. Lower data.{stage}.held_out, raise "
            f"data.{stage}.limit or data.shares.{stage}, or give it more rows."
        )
    held = set(prompts[:count])
    train = [row for key, row in mine if key not in held]
    return train, [row for key, row in mine if key in held]


def stage_interval(data: Data, stage: Stage) -> tuple[float, float]:
    """The part of [0, 1) whose prompts, placed there by hash, the stage gets of its source.

    All of it for a source of its own. Stages that read the same path, name, split and revision get parts
    that do not meet, in proportion to their `shares`; what the three shares leave of 1 goes unused.
    """
    shares, mine = data.shares, data.source(stage).identity
    together = [other for other in STAGES if data.source(other).identity == mine]
    if len(together) == 1:
        return 0.0, 1.0
    total = sum(shares.of(other) for other in together)
    if shares.of(stage) == 0:
        raise UserError(
            f"data.shares.{stage} is 0, but data.{stage} reads the same source as "
            f"{_others(together, stage)}. Give it a share, or a source of its own."
        )
    scale = sum(map(shares.of, STAGES)) / total
    before = sum(shares.of(other) for other in together[: together.index(stage)])
    high = (before + shares.of(stage)) * scale
    return before * scale, 1.0 if high > 1 - 1e-9 else high  # 0.2 + 0.4 + 0.4 is a little off 1 in floats


def _others(together: Sequence[Stage], stage: Stage) -> str:
    return " and ".join(f"data.{other}" for other in together if other != stage)


def _unit(seed: int, purpose: str, key: str) -> float:
    """A number in [0, 1) that seems random and depends on the arguments alone."""
    digest = hashlib.sha256(f"{seed}\n{purpose}\n{key}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def _held_out_count(source: Source, prompts: int) -> int:
    if source.held_out == 0:
        return 0
    if source.held_out >= 1:
        return round(source.held_out)
    return max(1, round(source.held_out * prompts))
