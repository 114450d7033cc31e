"""Pack short examples into long sequences, so that SFT does not compute on padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from trl import pack_dataset

from data.batches.tokenize import Demonstration


@dataclass(frozen=True)
class PackedSequence:
    """Whole examples one after another. Example i has `seq_lengths[i]` tokens."""

    input_ids: list[int]
    completion_mask: list[bool]
    seq_lengths: list[int]

    @property
    def position_ids(self) -> list[int]:
        """Position of each token within its example, from 0."""
        return [position for length in self.seq_lengths for position in range(length)]

    @property
    def segment_ids(self) -> list[int]:
        """Index of the example that each token belongs to, from 0."""
        return [number for number, length in enumerate(self.seq_lengths) for _ in range(length)]


def pack(demonstrations: Sequence[Demonstration], max_length: int) -> list[PackedSequence]:
    """Pack demonstrations into sequences of at most `max_length` tokens without cutting any.

    Uses best fit decreasing over the whole set (Ding et al. 2024, "Fewer Truncations Improve Language
    Modeling").

    Raises:
        ValueError: an example is longer than `max_length`. TRL would cut it.
    """
    rows = [
        {
            "input_ids": example.prompt_ids + example.completion_ids,
            "completion_mask": list(map(int, example.completion_mask)),
        }
        for example in demonstrations
    ]
    longest = max((len(row["input_ids"]) for row in rows), default=0)
    if longest > max_length:
        raise ValueError(f"an example of {longest} tokens does not fit into sequences of {max_length}")
    if not rows:
        return []
    whole_set = {"batch_size": len(rows)}
    with _no_progress_bar():
        packed = pack_dataset(Dataset.from_list(rows), max_length, strategy="bfd", map_kwargs=whole_set)
    return [
        PackedSequence(row["input_ids"], [mark == 1 for mark in row["completion_mask"]], row["seq_lengths"])
        for row in packed
    ]


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep the progress bar of `datasets` out of the stage's display."""
    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
