"""What a comparison reads: prompts with their categories, and demonstrations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from data.sources.loading import load_rows
from data.sources.messages import last_text
from data.storage.files import read_json_lines

CATEGORY = "category"
Row = dict[str, Any]


def read_prompts(
    run: TrainedRun,
    tokenizer: PreTrainedTokenizerBase,
    file: Path | None,
    number: int | None,
    categories: Mapping[str, str],
) -> list[Prompt]:
    """At most `number` prompts of a file, or, without one, of those that the run keeps from training.

    Raises:
        UserError: the file cannot be read, or a prompt is longer than those of the training.
    """
    if file is None:
        return held_out_prompts(run, tokenizer, number)
    source = Source(path=str(file), limit=number, ignore_columns=(CATEGORY,) if categories else ())
    rows = load_rows(source, "prompts", lambda _: None).rows
    prompts = fitting(rows, tokenizer, run.config.data)
    if len(prompts) < len(rows):
        raise UserError(
            f"{file}: {len(rows) - len(prompts)} prompts are longer than data.max_prompt_length "
            f"({run.config.data.max_prompt_length} tokens). Shorten them: the run's policies have not seen "
            "longer ones."
        )
    return prompts


def fitting(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, data: Data) -> list[Prompt]:
    """The prompts of those rows that are within the limits of `data`; it may be none."""
    try:
        return tokenize.prompts(rows, tokenizer, data)[0]
    except NothingFits:
        return []


def categories_of(file: Path | None) -> dict[str, str]:
    """The category of each prompt of a JSONL file, by the prompt's text; empty without any."""
    if file is None or file.suffix != ".jsonl":
        return {}
    return {
        last_text(row["prompt"]): str(row[CATEGORY])
        for row in read_json_lines(file)
        if CATEGORY in row and row.get("prompt")
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
