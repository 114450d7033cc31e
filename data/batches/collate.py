"""Collate examples of unequal length into padded tensors. Masks, not the pad token, mark padding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
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
    """One ranking per row: the prompt once, then all completions, each as if it followed the prompt.

    Attributes:
        input_ids: (G, T) long, padded on the right.
        position_ids: (G, T) long; each completion continues the positions of the prompt.
        attention_mask: (G, 1, T, T) bool: a token attends to itself, to earlier tokens of the same completion
            and to the prompt. A mask for sdpa (and math), not for flash or eager attention.
        last: (G, K) long, index of each completion's last token; 0 if a ranking has fewer than K.
        lengths: (G, K) long, tokens of each completion, at least 1: an empty one is the prompt's last token.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    last: Tensor
    lengths: Tensor

    def means(self, values: Tensor) -> Tensor:
        """The mean of `values`, (G, T), over the tokens of each completion: (G, K)."""
        places = torch.arange(values.shape[1], device=values.device)
        inside = (places <= self.last[..., None]) & (places > (self.last - self.lengths)[..., None])
        return (inside * values[:, None]).sum(2) / self.lengths

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


def rankings(rows: Sequence[tuple[list[int], list[list[int]]]], pad_id: int) -> RankedBatch:
    """Collate `(prompt_ids, list of completion_ids)` rows. T is the length of the longest row.

    The last token of an empty completion is that of its prompt.
    """
    ids, positions, segments, last = [], [], [], []
    for prompt, completions in rows:
        parts = [prompt, *completions]
        ids.append([token for part in parts for token in part])
        starts = [0, *[len(prompt)] * len(completions)]
        positions.append([s + i for s, part in zip(starts, parts, strict=True) for i in range(len(part))])
        segments.append([number for number, part in enumerate(parts) for _ in part])
        ends = accumulate(map(len, parts))
        last.append([end - 1 if part else len(prompt) - 1 for part, end in zip(parts, ends, strict=True)][1:])
    segment = _padded(segments, -1)
    key_segment = segment[:, None, :]
    return RankedBatch(
        _padded(ids, pad_id),
        _padded(positions, 0),
        _causal((segment[:, :, None] == key_segment) | (key_segment == 0)),
        _padded(last, 0),
        _padded([[max(1, len(part)) for part in completions] for _, completions in rows], 1),
    )


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])


def _causal(same_segment: Tensor) -> Tensor:
    """Restrict a (B, T, T) bool mask to pairs that do not look ahead. Returns (B, 1, T, T) bool."""
    return (same_segment & torch.ones(same_segment.shape[1:], dtype=torch.bool).tril())[:, None]
