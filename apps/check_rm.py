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
from pipeline.state.reward_check import ALL, CURVE, SOUND, TOO_FEW, UNSOUND
from pipeline.state.run_directory import RunDirectory
from stages.feedback.rankings import FILE, learned_rankings
from stages.maths.preferences import WIDEST, ScoredRanking, lead_over, pairs_of, prompt_numbers, ranking_of
from stages.maths.statistics import LEAST, Figure

Row = dict[str, Any]
KEPT = ("prompt", "completions", "completion_ids", "ranks", "scores")
CHANCE = 0.5
NEAR = 0.05  # an accuracy above chance by less is as good as chance
TRAIN, HELD_OUT = "rankings.jsonl", "held-out.jsonl"


@dataclass(frozen=True)
class Variant:
    """Training rankings that were changed.

    Attributes:
        expected: what the accuracy on the true held-out labels should be, in words.
        sound: whether an interval of accuracy, (low, high), is as it should be, or None if it does not tell;
            None in place of it if any accuracy may be.
    """

    name: str
    change: Callable[[Sequence[Row], Random], list[Row]]
    expected: str
    sound: Callable[[float, float], bool | None] | None = None


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


def _at_chance(low: float, high: float) -> bool | None:
    """[0.45, 0.55] is at chance, [0.52, 0.70] is not, and [0.20, 0.80] may be anything."""
    if not low <= CHANCE <= high:
        return False
    return True if high - low <= WIDEST else None


def _above_chance(low: float, high: float) -> bool | None:
    """[0.52, 0.70] is above chance, [0.47, 0.53] is no better than chance, and [0.40, 0.70] may be either."""
    if low > CHANCE:
        return True
    return False if high < CHANCE + NEAR else None


def _below_chance(low: float, high: float) -> bool | None:
    return _above_chance(1 - high, 1 - low)


SHUFFLED = Variant("shuffled", _shuffled, "0.5: nothing to learn", _at_chance)
NEGATED = Variant("negated", _negated, "below 0.5: the opposite", _below_chance)
WHOLE = Variant(ALL, _part(1.0), "above 0.5", _above_chance)
PARTS = (
    Variant(CURVE[0], _part(0.25), "at most that of all"),
    Variant(CURVE[1], _part(0.5), "at most that of all"),
)


def variants(*, curve: bool) -> list[Variant]:
    """What is trained: all rankings as they are, shuffled, upside down; for a curve, parts of them, too."""
    return [*(PARTS if curve else ()), WHOLE, SHUFFLED, NEGATED]


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
        train, held_out = learned_rankings(collected.parent, config)
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
        The two files as the sources of stage rm.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json_lines(folder / TRAIN, variant.change(train, Random(seed)))
    write_json_lines(folder / HELD_OUT, held_out)
    return [
        Source(path=str(folder / TRAIN), held_out=0),
        Source(path=str(folder / HELD_OUT), held_out="all"),
    ]


def some_prompts(rows: Sequence[Row], number: int | None, seed: int) -> list[Row]:
    """The rankings of at most `number` prompts."""
    keys = list(dict.fromkeys(prompt_key(row["prompt"]) for row in rows))
    if number is None or number >= len(keys):
        return list(rows)
    return _part(number / len(keys))(rows, Random(seed))


def prompts_in(rows: Sequence[Row]) -> int:
    """The number of prompts of rankings."""
    return len({prompt_key(row["prompt"]) for row in rows})


def verdict(variant: Variant, accuracy: Figure) -> str:
    """Whether the accuracy of a variant is what it should be. Over few prompts, an interval does not tell."""
    if variant.sound is None:
        return ""
    sound = variant.sound(accuracy["low"], accuracy["high"]) if accuracy["n"] >= LEAST else None
    if sound is None:
        return TOO_FEW
    return SOUND if sound else f"{UNSOUND} ({variant.expected})"


def gain_of(rows: Sequence[Row], fewer: Sequence[Row]) -> Figure | None:
    """The accuracy after all rankings less that after fewer of them, paired by prompt.

    Args:
        rows, fewer: `rm/evaluation.jsonl` of the two: the same held-out rankings, in any order.

    Returns:
        None if the two did not score the same rankings.
    """
    ours, theirs = (sorted(map(ranking_of, of), key=_identity) for of in (rows, fewer))
    if [*map(_identity, ours)] != [*map(_identity, theirs)]:
        return None
    prompts = prompt_numbers(ours)
    return lead_over(pairs_of(ours, prompts), pairs_of(theirs, prompts).margins)


def _identity(ranking: ScoredRanking) -> tuple[str, str, list[str], list[int]]:
    return ranking.key, ranking.prompt, ranking.answers, ranking.ranks
