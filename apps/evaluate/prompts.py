"""What a comparison reads: prompts with their categories, and demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from apps.trained_run import TrainedRun, held_out_prompts
from configs.errors import UserError
from configs.schema import Data, Source
from data.batches import tokenize
from data.batches.fit import NothingFits
from data.batches.tokenize import Prompt
from data.examples import rows_once_each
from data.sources.bad_rows import BadRow
from data.sources.loading import load_rows
from data.sources.reading import read, where
from data.sources.split import prompt_key, row_key

CATEGORY = "category"
Row = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What all candidates answer.

    Attributes:
        categories: of each prompt, "" for none; empty if no row of the file has one.
        notes: what a person should know of the prompts.
    """

    prompts: list[Prompt]
    categories: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_prompts(
    run: TrainedRun,
    tokenizer: PreTrainedTokenizerBase,
    file: Path | None,
    number: int | None,
) -> Asked:
    """At most `number` prompts of a file, or, without one, of those that the run keeps from training.

    Each prompt is asked once, even if several rows have it.

    Raises:
        UserError: the file cannot be read, or a prompt is longer than those of the training.
    """
    notes: list[str] = []
    if file is None:
        return Asked(held_out_prompts(run, tokenizer, notes.append, number), notes=notes)
    source = Source(path=str(file))
    categories = values_of(source, CATEGORY)
    if categories:
        source = source.model_copy(update={"ignore_columns": (CATEGORY,)})
    rows = rows_once_each(load_rows(source, "prompts", lambda _: None).rows, notes.append)[:number]
    prompts = fitting(rows, tokenizer, run.config.data)
    if len(prompts) < len(rows):
        raise UserError(
            f"{file}: {len(rows) - len(prompts)} prompts are longer than data.max_prompt_length "
            f"({run.config.data.max_prompt_length} tokens). Shorten them: the run's policies have not seen "
            "longer ones."
        )
    named = [categories.get(row["where"], "") for row in rows] if categories else []
    return Asked(prompts, named, [*notes, *_trained_note(run, file, rows)])


def _trained_note(run: TrainedRun, file: Path, rows: Sequence[Row]) -> list[str]:
    """A sentence if prompts of the file were trained on, or if that is not known."""
    try:
        trained = trained_keys(run)
    except UserError as error:
        return [f"Whether the run was trained on prompts of {file.name} is not known: {error}"]
    seen = sum(row_key(row) in trained for row in rows)
    if not seen:
        return []
    return [f"The run was trained on {seen:,} of the {len(rows):,} prompts of {file.name}: they are no test."]


def trained_keys(run: TrainedRun) -> set[str]:
    """What tells apart the rows that the run's policies were trained on.

    Raises:
        UserError: the data is not where the configuration says.
    """
    keys: set[str] = set()
    if "sft" in run.manifests:
        keys.update(map(row_key, run.rows("sft", "demonstrations").train))
    if "ppo" in run.manifests:
        keys.update(map(row_key, run.rows("ppo", "prompts").train))
    return keys


def fitting(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, data: Data) -> list[Prompt]:
    """The prompts of those rows that are within the limits of `data`; it may be none."""
    try:
        return tokenize.prompts(rows, tokenizer, data)[0]
    except NothingFits:
        return []


def values_of(source: Source, key: str) -> dict[str, str]:
    """What each row that has it says under a key, by the row's name in messages."""
    return {
        where(source, place): str(row[key])
        for place, row in read(source)
        if not isinstance(row, BadRow) and row.get(key) not in (None, "")
    }


def training_demonstrations(run: TrainedRun, asked: Sequence[Prompt]) -> list[Row]:
    """The demonstrations that SFT trains on, without those to a prompt that is asked.

    Raises:
        UserError: they are texts without prompts, which show no answer to one.
    """
    rows = run.rows("sft", "demonstrations").train
    with_prompt = [row for row in rows if row["prompt"]]
    if not with_prompt:
        raise UserError(
            "data.sft: its rows are texts without prompts, so a base has no demonstrations to answer by. "
            "Leave the candidates with demonstrations out."
        )
    keys = {prompt_key(prompt.prompt) for prompt in asked}
    return [row for row in with_prompt if prompt_key(row["prompt"]) not in keys]
