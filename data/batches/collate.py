"""Collate examples of unequal length into padded tensors. Masks, not the pad token, mark padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from typing import NamedTuple

import torch
from torch import Tensor

from data.batches.pack import PackedSequence
from data.batches.tokenize import Demonstration


class Batch(NamedTuple):
    """Prompts and completions, padded on the right.

    Attributes:
        input_ids: (B, T) long.
        attention_mask: (B, T) long, 1 on tokens, 0 on padding.
        completion_mask: (B, T) bool, True only on completion tokens that are learned.
    """

    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor

    def to(self, device: torch.device | str) -> Batch:
        return Batch(*(tensor.to(device) for tensor in self))


class PackedBatch(NamedTuple):
    """Packed sequences (`PackedSequence`), padded on the right.

    Attributes:
        input_ids: (B, T) long.
        position_ids: (B, T) long, starting at 0 in each example.
        completion_mask: (B, T) bool, True only on completion tokens. It is False on the first token of an
            example, so that no example predicts the beginning of the next.
        attention_mask: (B, 1, T, T) bool, True if the token of the row attends to the token of the column:
            to itself and to earlier tokens of the same example. A mask for sdpa (and math), not for flash or
            eager attention.
    """

    input_ids: Tensor
    position_ids: Tensor
    completion_mask: Tensor
    attention_mask: Tensor

    def to(self, device: torch.device | str) -> PackedBatch:
        return PackedBatch(*(tensor.to(device) for tensor in self))


class RankedBatch(NamedTuple):
    """Rankings in rows: each is its prompt once, then all completions, each as if it followed the prompt.

    Attributes:
        input_ids: (B, T) long, padded on the right. A row holds one ranking, or several.
        position_ids: (B, T) long; each completion continues the positions of its prompt.
        attention_mask: (B, 1, T, T) bool: a token attends to itself, to earlier tokens of the same completion
            and to its prompt. A mask for sdpa (and math), not for flash or eager attention.
        row: (G,) long, the row of each ranking.
        last: (G, K) long, place in its row of each completion's last token; 0 if a ranking has fewer than K.
        lengths: (G, K) long, tokens of each completion, at least 1: an empty one is the prompt's last token.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    row: Tensor
    last: Tensor
    lengths: Tensor

    def at_last(self, values: Tensor) -> Tensor:
        """`values`, (B, T), at the last token of each completion: (G, K)."""
        return values[self.row[:, None], self.last]

    def means(self, values: Tensor) -> Tensor:
        """The mean of `values`, (B, T), over the tokens of each completion: (G, K)."""
        places = torch.arange(values.shape[1], device=values.device)
        inside = (places <= self.last[..., None]) & (places > (self.last - self.lengths)[..., None])
        return (inside * values[self.row, None]).sum(2) / self.lengths

    def to(self, device: torch.device | str) -> RankedBatch:
        return RankedBatch(*(tensor.to(device) for tensor in self))


class PromptBatch(NamedTuple):
    """Prompts, padded on the left. `input_ids` and `attention_mask` are (B, P) long."""

    input_ids: Tensor
    attention_mask: Tensor

    def to(self, device: torch.device | str) -> PromptBatch:
        return PromptBatch(*(tensor.to(device) for tensor in self))


def demonstrations(rows: Sequence[Demonstration], pad_id: int) -> Batch:
    """Collate demonstrations. T is the length of the longest one."""
    ids = [row.prompt_ids + row.completion_ids for row in rows]
    return Batch(
        _padded(ids, pad_id),
        _padded([[1] * len(row) for row in ids], 0),
        _padded([row.completion_mask for row in rows], 0).bool(),
    )


def prompts(prompt_ids: Sequence[list[int]], pad_id: int) -> PromptBatch:
    """Collate prompts for generation. P is the length of the longest prompt."""
    width = max(map(len, prompt_ids))
    ids = [[pad_id] * (width - len(prompt)) + prompt for prompt in prompt_ids]
    attention = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompt_ids]
    return PromptBatch(torch.tensor(ids), torch.tensor(attention))


def packed(rows: Sequence[PackedSequence], pad_id: int) -> PackedBatch:
    """Collate packed sequences. T is the length of the longest sequence."""
    segments = _padded([row.segment_ids for row in rows], -1)
    # Padding attends to itself: softmax over an empty set would give NaN.
    return PackedBatch(
        _padded([row.input_ids for row in rows], pad_id),
        _padded([row.position_ids for row in rows], 0),
        _padded([row.completion_mask for row in rows], 0).bool(),
        _causal(segments[:, :, None] == segments[:, None, :]),
    )


def rankings(
    items: Sequence[tuple[list[int], list[list[int]]]], pad_id: int, rows: Sequence[Sequence[int]] = ()
) -> RankedBatch:
    """Collate rankings, each `(prompt_ids, list of completion_ids)`. T is the length of the longest row.

    The last token of an empty completion is that of its prompt.

    Args:
        rows: which rankings each row holds, as indices into `items`; default: one ranking in each.
    """
    rows = rows or [[number] for number in range(len(items))]
    alone = [_ranked(*item) for item in items]
    row_of, last = [0] * len(items), [one.last for one in alone]
    for row, numbers in enumerate(rows):
        begins = accumulate((len(alone[number].ids) for number in numbers), initial=0)
        for number, begin in zip(numbers, begins, strict=False):
            row_of[number], last[number] = row, [begin + place for place in alone[number].last]

    def joined(values_of: Callable[[int], list[int]], fill: int) -> Tensor:
        return _padded([[*chain.from_iterable(map(values_of, numbers))] for numbers in rows], fill)

    ranking = joined(lambda number: [number] * len(alone[number].ids), -1)
    part = joined(lambda number: alone[number].parts, -1)
    same_part = part[:, :, None] == part[:, None]
    return RankedBatch(
        joined(lambda number: alone[number].ids, pad_id),
        joined(lambda number: alone[number].positions, 0),
        _causal((ranking[:, :, None] == ranking[:, None]) & (same_part | (part == 0)[:, None])),
        torch.tensor(row_of),
        _padded(last, 0),
        _padded([[max(1, len(ids)) for ids in completions] for _, completions in items], 1),
    )


class _Ranked(NamedTuple):
    """One ranking: tokens, their positions and parts (0 is the prompt), and the last token of each answer."""

    ids: list[int]
    positions: list[int]
    parts: list[int]
    last: list[int]


def _ranked(prompt: list[int], completions: list[list[int]]) -> _Ranked:
    parts = [prompt, *completions]
    starts = [0, *[len(prompt)] * len(completions)]
    ends = [*accumulate(map(len, parts))]
    return _Ranked(
        [*chain.from_iterable(parts)],
        [start + place for start, part in zip(starts, parts, strict=True) for place in range(len(part))],
        [number for number, part in enumerate(parts) for _ in part],
        [end - 1 if ids else len(prompt) - 1 for ids, end in zip(completions, ends[1:], strict=True)],
    )


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])


def _causal(same_segment: Tensor) -> Tensor:
    """Restrict a (B, T, T) bool mask to pairs that do not look ahead. Returns (B, 1, T, T) bool."""
    return (same_segment & torch.ones(same_segment.shape[1:], dtype=torch.bool).tril())[:, None]
