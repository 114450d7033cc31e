"""Rankings of earlier rounds, which the reward model learns, too (Bai et al. 2022, section 4.5)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from configs.errors import UserError
from data.sources.messages import Text, last_text
from data.sources.split import prompt_key
from data.storage.files import read_json_lines

Row = dict[str, Any]
KEYS = ("split", "prompt", "completions", "ranks")
REMEDY = "Restore the file, or leave it out of rm.rankings.earlier."
SPLITS = ("train", "held_out")


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
    parts: dict[str, list[Row]] = {"train": list(train), "held_out": list(held_out)}
    moved = tied = 0
    for row in (row for file in reversed(files) for row in _read(Path(file), tokenizer)):
        key, split = prompt_key(row["prompt"]), row["split"]
        own = "held_out" if key in held else "train" if key in trained else split
        (held if own == "held_out" else trained).add(key)
        moved += own != split
        if max(row["ranks"]) > 0:
            parts[own].append(row)
        else:
            tied += 1
    added = len(parts["train"]) - len(train), len(parts["held_out"]) - len(held_out)
    note = (
        f"rm.rankings.earlier: {added[0]} rankings to train on and {added[1]} held out, of {len(files)} "
        f"earlier rounds; {tied} left out: all their answers tie"
    )
    if moved:
        note += f"; {moved} are in the split that a newer round gives their prompts"
    return parts["train"], parts["held_out"], note


def _read(file: Path, tokenizer: PreTrainedTokenizerBase | None) -> list[Row]:
    rows = read_json_lines(file, KEYS, remedy=REMEDY)
    for number, row in enumerate(rows, 1):
        if not _is_ranking(row):
            raise UserError(f"{file}, line {number}: no ranking that stage rm collected. {REMEDY}")
        if tokenizer is not None and "completion_ids" in row and not _has_tokens_of(row, tokenizer):
            raise UserError(
                f"rm.rankings.earlier: {file}, line {number}: its token ids are not those of base.model: "
                f"another base sampled these answers. {REMEDY}"
            )
    return rows


def _is_ranking(row: Row) -> bool:
    """Whether a row has the form that stage rm writes. Answers that no policy sampled have no token ids."""
    lists = [row[key] for key in ("completions", "ranks", "completion_ids") if key in row]
    if not all(isinstance(value, list) and value for value in lists) or len(set(map(len, lists))) > 1:
        return False
    if not all(type(rank) is int and rank >= 0 for rank in row["ranks"]) or row["split"] not in SPLITS:
        return False
    return all(map(_is_text, (row["prompt"], *row["completions"])))


def _is_text(value: Any) -> bool:
    """Whether a value is a text, which may be empty as a sample may, or a conversation."""
    if not isinstance(value, list):
        return isinstance(value, str)
    return bool(value) and all(isinstance(one, dict) and isinstance(one.get("content"), str) for one in value)


def _has_tokens_of(row: Row, tokenizer: PreTrainedTokenizerBase) -> bool:
    return all(map(partial(_says, tokenizer), row["completion_ids"], row["completions"]))


def _says(tokenizer: PreTrainedTokenizerBase, ids: Any, answer: Text) -> bool:
    known = isinstance(ids, list) and all(type(one) is int and 0 <= one < len(tokenizer) for one in ids)
    return known and tokenizer.decode(ids, skip_special_tokens=True).split() == last_text(answer).split()
