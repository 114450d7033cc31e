"""The rankings that a reward model is measured on: rows of any source, with the subset of each."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apps.evaluate.prompts import values_of
from apps.evaluate.reward_models.benchmarks import TIES
from apps.evaluate.reward_models.labellers import JUDGE, judges_agree, voters_agree
from apps.trained_run import TrainedRun
from configs.errors import UserError
from configs.schema import Source
from data.sources.keys import ORIGIN
from data.sources.loading import load_rows
from data.sources.reading import describe, read, where
from data.sources.split import prompt_key
from stages.feedback.rankings import FILE, learned_rankings
from stages.maths.statistics import Figure

Row = dict[str, Any]
Say = Callable[[str], None]
SUBSET = "subset"  # the key of RewardBench


@dataclass(frozen=True)
class Preferences:
    """Rankings of a source.

    Attributes:
        rows: `prompt`, `completions`, `ranks` and `where` of each.
        subsets: of each row; empty if the source has none.
        read, left_out: how many rows were read, and how many of these teach nothing, such as ties.
        notes: what a person should know of them.
        ids: of each row its `id`, "" without one; empty if no subset is RewardBench 2's Ties, which needs it.
        judges_agree: how often two judges of MT-Bench agree; None if it is not known.
        voters_agree: how often two of PandaLM's annotators agree, whose majority is the label; None as above.
    """

    rows: list[Row]
    subsets: list[str]
    read: int
    left_out: int
    notes: list[str]
    ids: list[str] = field(default_factory=list)
    judges_agree: Figure | None = None
    voters_agree: Figure | None = None


def read_preferences(source: Source, by: str | None, run: TrainedRun | None) -> Preferences:
    """The rankings of `source`, without those whose prompt the reward model of `run` was trained on.

    Args:
        by: the key of a row that names its subset; None for `subset`, or else the file that it is in.

    Raises:
        UserError: the source cannot be read, no row has the key, or no ranking is left.
    """
    notes: list[str] = []
    key = by or SUBSET
    named = values_of(source, key)
    if named and key in ORIGIN:  # else a note says that it is not read
        source = source.model_copy(update={"ignore_columns": (*source.ignore_columns, key)})
    loaded = load_rows(source, "rankings", notes.append)
    rows = loaded.rows if run is None else _unseen(loaded.rows, run, notes.append)
    if not rows:
        raise UserError(
            f"{describe(source)}: the reward model was trained on all of its prompts, so it says nothing. "
            "Give other data."
        )
    named = named or _by_file(source, by)
    subsets = [named.get(row["where"], "none") for row in rows] if named else []
    identities = values_of(source, "id") if TIES in subsets else {}
    ids = [identities.get(row["where"], "") for row in rows] if TIES in subsets else []
    judges = {} if JUDGE in source.ignore_columns else values_of(source, JUDGE)
    agreements = judges_agree(rows, judges), voters_agree(source)
    return Preferences(rows, subsets, loaded.read, loaded.left_out, notes, ids, *agreements)


def _by_file(source: Source, by: str | None) -> dict[str, str]:
    """The file of each row, by the row's name in messages; empty if there is only one."""
    if by:
        raise UserError(
            f"--by {by}: no row of {describe(source)} has this key. Name another, or leave it out."
        )
    files = {where(source, place): place.rpartition(", ")[0] for place, _ in read(source)}
    return _short(files) if len(set(files.values())) > 1 else {}


def _short(files: dict[str, str]) -> dict[str, str]:
    """Paths without the folder that all share, and without a file name that all share."""
    shared = os.path.commonpath([os.path.dirname(file) for file in files.values()])
    paths = {name: Path(os.path.relpath(file, shared)) for name, file in files.items()}
    alike = len({path.name for path in paths.values()}) == 1
    return {name: str(path.parent if alike else path) for name, path in paths.items()}


def _unseen(rows: list[Row], run: TrainedRun, note: Say) -> list[Row]:
    """The rows whose prompt is not among those that stage rm of the run was trained on."""
    try:
        trained = _trained_prompts(run)
    except UserError as error:
        note(f"whether the reward model was trained on these prompts is not known: {error}")
        return rows
    unseen = [row for row in rows if prompt_key(row["prompt"]) not in trained]
    if len(unseen) < len(rows):
        note(f"left out {len(rows) - len(unseen):,} rows: the reward model was trained on their prompts")
    return unseen


def _trained_prompts(run: TrainedRun) -> set[str]:
    folder = run.run.stage("rm")
    if (folder / FILE).is_file():
        rows, _ = learned_rankings(folder, run.config)
    else:
        rows = run.rows("rm", "rankings").train
    return {prompt_key(row["prompt"]) for row in rows}
