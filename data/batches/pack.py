"""Pack short examples into long sequences, so that SFT spends its time on tokens rather than on padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from trl import pack_dataset

from data.batches.tokenize import Demonstration


@dataclass(frozen=True)
class Packed:
    """Whole examples one after another, of `seq_lengths` tokens each; `completion_mask` marks completions."""

    input_ids: list[int]
    completion_mask: list[bool]
    seq_lengths: list[int]

    @property
    def position_ids(self) -> list[int]:
        """Positions that begin again at 0 with each example."""
        return [position for length in self.seq_lengths for position in range(length)]

    @property
    def segment_ids(self) -> list[int]:
        """Number of the example that each token belongs to, from 0."""
        return [number for number, length in enumerate(self.seq_lengths) for _ in range(length)]


def pack(demonstrations: Sequence[Demonstration], max_length: int) -> list[Packed]:
    """Pack demonstrations into sequences of at most `max_length` tokens, none of them cut.

    By best fit decreasing (Ding et al. 2024, "Fewer Truncations Improve Language Modeling"), over the whole
    set at once. Raises ValueError for an example longer than `max_length`, which TRL would cut.
    """
    rows = [
        {
            "input_ids": each.prompt_ids + each.completion_ids,
            "completion_mask": [0] * len(each.prompt_ids) + [1] * len(each.completion_ids),
        }
        for each in demonstrations
    ]
    longest = max((len(row["input_ids"]) for row in rows), default=0)
    if longest > max_length:
        raise ValueError(f"an example of {longest} tokens does not fit into sequences of {max_length}")
    if not rows:
        return []
    at_once = {"batch_size": len(rows)}
    with _no_progress_bar():
        packed = pack_dataset(Dataset.from_list(rows), max_length, strategy="bfd", map_kwargs=at_once)
    return [
        Packed(row["input_ids"], [mark == 1 for mark in row["completion_mask"]], row["seq_lengths"])
        for row in packed
    ]


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep `datasets` from drawing a bar of its own across the stage's display."""
    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
