"""Pack short examples into long rows, so that a stage does not compute on padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heappop, heappush

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


def level_rows(shares: Sequence[Sequence[int]]) -> list[list[list[int]]]:
    """Share out examples over rows of about the same length, as few as fit, the longest first.

    Each share has the same number of rows, so that ranks take the same number of forwards. No row is longer
    than the longest example of all shares.

    Args:
        shares: lengths of the examples of each rank, as many on each.

    Returns: the rows of each share, as indices into it.
    """
    longest = max(map(max, shares))
    fewest = max(-(-sum(share) // longest) for share in shares)
    for count in range(fewest, len(shares[0])):
        rows = [_spread(share, count) for share in shares]
        pairs = zip(shares, rows, strict=True)
        if all(sum(share[i] for i in row) <= longest for share, of_share in pairs for row in of_share):
            return rows
    return [[[i] for i in range(len(share))] for share in shares]


def _spread(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Put each example, the longest first, into the shortest of `count` rows (Graham 1969)."""
    rows: list[list[int]] = [[] for _ in range(count)]
    shortest = [(0, row) for row in range(count)]
    for example in sorted(range(len(lengths)), key=lambda example: -lengths[example]):
        length, row = heappop(shortest)
        rows[row].append(example)
        heappush(shortest, (length + lengths[example], row))
    return sorted(rows, key=lambda row: -sum(lengths[example] for example in row))


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
