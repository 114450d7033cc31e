"""Rankings of earlier rounds, which the reward model learns, too (Bai et al. 2022, section 4.5)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from configs.errors import UserError
from data.sources.collected_rankings import SPLITS, read_rankings, split_of_rounds, useful
from data.sources.messages import Text, last_text
from data.sources.split import prompt_key

Row = dict[str, Any]
REMEDY = "Restore the file, or leave it out of rm.rankings.earlier."


def with_earlier(
    train: Sequence[Row],
    held_out: Sequence[Row],
    files: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[list[Row], list[Row], str]:
    """Training and held-out rankings of all rounds, oldest last, and a line on what was joined.

    A prompt is in one split only: that of the newest round that has it.

    Args:
        tokenizer: whose token ids the answers must have, if they are read as tokens.

    Raises:
        UserError: a file is not one that stage rm of a run wrote, or another base sampled its answers.
    """
    trained, held = ({prompt_key(row["prompt"]) for row in rows} for rows in (train, held_out))
    placed = list(split_of_rounds([_read(Path(file), tokenizer) for file in files], trained, held))
    added, held_added = (useful(row for row, own in placed if own == split) for split in SPLITS)
    note = (
        f"rm.rankings.earlier: {len(added)} rankings to train on and {len(held_added)} held out, of "
        f"{len(files)} earlier rounds; {len(placed) - len(added) - len(held_added)} left out: all their "
        "answers tie"
    )
    if moved := sum(own != row["split"] for row, own in placed):
        note += f"; {moved} are in the split that a newer round gives their prompts"
    return [*train, *added], [*held_out, *held_added], note


def _read(file: Path, tokenizer: PreTrainedTokenizerBase | None) -> list[Row]:
    rows = read_rankings(file, REMEDY)
    for number, row in enumerate(rows, 1):
        if tokenizer is not None and "completion_ids" in row and not _has_tokens_of(row, tokenizer):
            raise UserError(
                f"rm.rankings.earlier: {file}, line {number}: its token ids are not those of base.model: "
                f"another base sampled these answers. {REMEDY}"
            )
    return rows


def _has_tokens_of(row: Row, tokenizer: PreTrainedTokenizerBase) -> bool:
    return all(map(partial(_says, tokenizer), row["completion_ids"], row["completions"]))


def _says(tokenizer: PreTrainedTokenizerBase, ids: Any, answer: Text) -> bool:
    known = isinstance(ids, list) and all(type(one) is int and 0 <= one < len(tokenizer) for one in ids)
    return known and tokenizer.decode(ids, skip_special_tokens=True).split() == last_text(answer).split()
