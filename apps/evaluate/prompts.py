"""What a comparison reads: prompts with their categories, and demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from apps.trained_run import TrainedRun, held_out_prompts
from configs.errors import UserError
from configs.schema import Data, Source
from data.batches import tokenize
from data.batches.fit import NothingFits
from data.batches.tokenize import Prompt
from data.examples import StageData
from data.sources.bad_rows import BadRow
from data.sources.loading import load_rows
from data.sources.reading import read, where

CATEGORY = "category"
Row = dict[str, Any]


def read_prompts(
    run: TrainedRun,
    tokenizer: PreTrainedTokenizerBase,
    file: Path | None,
    number: int | None,
) -> tuple[list[Prompt], list[str]]:
    """At most `number` prompts of a file, or, without one, of those that the run keeps from training.

    The second list has the category of each, "" for none; it is empty if no row of the file has one.

    Raises:
        UserError: the file cannot be read, or a prompt is longer than those of the training.
    """
    if file is None:
        return held_out_prompts(run, tokenizer, number), []
    source = Source(path=str(file), limit=number)
    categories = _categories(source)
    if categories:
        source = source.model_copy(update={"ignore_columns": (CATEGORY,)})
    rows = load_rows(source, "prompts", lambda _: None).rows
    prompts = fitting(rows, tokenizer, run.config.data)
    if len(prompts) < len(rows):
        raise UserError(
            f"{file}: {len(rows) - len(prompts)} prompts are longer than data.max_prompt_length "
            f"({run.config.data.max_prompt_length} tokens). Shorten them: the run's policies have not seen "
            "longer ones."
        )
    return prompts, [categories.get(row["where"], "") for row in rows] if categories else []


def fitting(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, data: Data) -> list[Prompt]:
    """The prompts of those rows that are within the limits of `data`; it may be none."""
    try:
        return tokenize.prompts(rows, tokenizer, data)[0]
    except NothingFits:
        return []


def _categories(source: Source) -> dict[str, str]:
    """The category of each row that has one, by the row's name in messages."""
    return {
        where(source, place): str(row[CATEGORY])
        for place, row in read(source)
        if not isinstance(row, BadRow) and row.get(CATEGORY) not in (None, "")
    }


def training_demonstrations(run: TrainedRun) -> list[Row]:
    """The demonstrations that SFT trains on.

    Raises:
        UserError: they are texts without prompts, which show no answer to one.
    """
    rows = StageData(run.config, "sft", lambda _: None).rows("demonstrations").train
    with_prompt = [row for row in rows if row["prompt"]]
    if not with_prompt:
        raise UserError(
            "data.sft: its rows are texts without prompts, so a base has no demonstrations to answer by. "
            "Leave the candidates with demonstrations out."
        )
    return with_prompt
