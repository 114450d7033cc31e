"""Changed rankings that tell whether a reward model learns from its labels, and what it makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from configs.errors import UserError
from configs.schema import Experiment, Source
from data.examples import StageData
from data.sources.split import prompt_key
from data.storage.files import write_json_lines
from pipeline.state.run_directory import RunDirectory
from stages.feedback.rankings import FILE, learned_rankings

Row = dict[str, Any]
KEPT = ("prompt", "completions", "completion_ids", "ranks", "scores")
CHANCE = 0.5
TRAIN, HELD_OUT = "rankings.jsonl", "held-out.jsonl"


@dataclass(frozen=True)
class Variant:
    """Training rankings that were changed.

    Attributes:
        expected: what the accuracy on the true held-out labels should be, in words.
        sound: whether an interval of accuracy, (low, high), is as it should be; None if anything may be.
    """

    name: str
    change: Callable[[Sequence[Row], Random], list[Row]]
    expected: str
    sound: Callable[[float, float], bool] | None = None


def _shuffled(rows: Sequence[Row], random: Random) -> list[Row]:
    """Each row with its ranks in an order by chance, and its scores, if it has any, in the same order."""
    changed = []
    for row in rows:
        order = random.sample(range(len(row["ranks"])), len(row["ranks"]))
        labels = {name: [row[name][i] for i in order] for name in ("ranks", "scores") if row.get(name)}
        changed.append({**row, **labels})
    return changed


def _negated(rows: Sequence[Row], random: Random) -> list[Row]:
    changed = []
    for row in rows:
        labels = {"ranks": [max(row["ranks"]) - rank for rank in row["ranks"]]}
        if row.get("scores"):
            labels["scores"] = [-score for score in row["scores"]]
        changed.append({**row, **labels})
    return changed


def _part(share: float) -> Callable[[Sequence[Row], Random], list[Row]]:
    """The rankings of a share of the prompts."""

    def change(rows: Sequence[Row], random: Random) -> list[Row]:
        keys = list(dict.fromkeys(prompt_key(row["prompt"]) for row in rows))
        kept = set(random.sample(keys, max(1, round(share * len(keys)))))
        return [row for row in rows if prompt_key(row["prompt"]) in kept]

    return change


SHUFFLED = Variant("shuffled", _shuffled, "0.5: nothing to learn", lambda low, high: low <= CHANCE <= high)
NEGATED = Variant("negated", _negated, "below 0.5: the opposite", lambda low, high: high < CHANCE)
WHOLE = Variant("all", _part(1.0), "above 0.5", lambda low, high: low > CHANCE)
CURVE = (
    Variant("25 %", _part(0.25), "at most that of all"),
    Variant("50 %", _part(0.5), "at most that of all"),
)


def variants(*, curve: bool) -> list[Variant]:
    """What is trained: all rankings as they are, shuffled, upside down; for a curve, parts of them, too."""
    return [*(CURVE if curve else ()), WHOLE, SHUFFLED, NEGATED]


def rankings_of(
    run: RunDirectory, config: Experiment, note: Callable[[str], None]
) -> tuple[list[Row], list[Row]]:
    """Training and held-out rankings as stage rm reads them.

    Raises:
        UserError: the rankings are not there, or none is held out, or the model starts from a trained one.
    """
    if config.rm.start:
        raise UserError(
            "rm.from: the reward model starts from one that has learned already, so its accuracy after "
            "shuffled rankings says nothing. Check a run without rm.from."
        )
    collected = run.stage("rm") / FILE
    if config.rm.rankings.labeller != "file":
        if not collected.is_file():
            raise UserError(f"{collected} is missing: stage rm has not run here. Run it first.")
        train, held_out = learned_rankings(collected.parent, config.rm.rankings.earlier)
    else:
        train, held_out, _ = StageData(config, "rm", note).rows("rankings")
    if not held_out:
        raise UserError("data.rm.held_out: no ranking is held out, so nothing can be measured. Raise it.")
    return _kept(train), _kept(held_out)


def _kept(rows: Sequence[Row]) -> list[Row]:
    return [{name: row[name] for name in KEPT if name in row} for row in rows]


def write_variant(
    folder: Path, variant: Variant, train: Sequence[Row], held_out: Sequence[Row], seed: int
) -> list[Source]:
    """Write the changed training rankings and the held-out ones as they are, each into a file.

    Returns:
        The two files as the sources of stage rm: all prompts of the second are held out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json_lines(folder / TRAIN, variant.change(train, Random(seed)))
    write_json_lines(folder / HELD_OUT, held_out)
    prompts = len({prompt_key(row["prompt"]) for row in held_out})
    return [
        Source(path=str(folder / TRAIN), held_out=0),
        Source(path=str(folder / HELD_OUT), held_out=prompts),
    ]


def some_prompts(rows: Sequence[Row], number: int | None, seed: int) -> list[Row]:
    """The rankings of at most `number` prompts."""
    keys = list(dict.fromkeys(prompt_key(row["prompt"]) for row in rows))
    if number is None or number >= len(keys):
        return list(rows)
    return _part(number / len(keys))(rows, Random(seed))


def verdict(variant: Variant, low: float, high: float) -> str:
    """Whether the accuracy of a variant is what it should be."""
    if variant.sound is None:
        return ""
    return "as it should be" if variant.sound(low, high) else f"not as it should be ({variant.expected})"
