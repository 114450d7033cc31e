"""Put examples of unequal length into padded tensors; masks, not the pad token, say what is padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from data.pack import Packed


class Batch(NamedTuple):
    """Prompts and completions, padded on the right.

    Attributes:
        input_ids: (B, T) long.
        attention_mask: (B, T) long, 1 where there is a token.
        completion_mask: (B, T) bool, True on completion tokens alone.
    """

    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor

    def to(self, device: torch.device | str) -> Batch:
        return Batch(*(tensor.to(device) for tensor in self))


class PackedBatch(NamedTuple):
    """Packed sequences, padded on the right.

    Attributes:
        input_ids: (B, T) long.
        position_ids: (B, T) long, from 0 in each example.
        completion_mask: (B, T) bool, True on completion tokens alone. The first token of an example is never
            one, so that no example's end is asked to predict the next one's beginning.
        attention_mask: (B, 1, T, T) bool, True where the token of the row may look at that of the column:
            itself and earlier ones of the same example. A mask for sdpa (and math), not for flash or eager
            attention.
    """

    input_ids: Tensor
    position_ids: Tensor
    completion_mask: Tensor
    attention_mask: Tensor

    def to(self, device: torch.device | str) -> PackedBatch:
        return PackedBatch(*(tensor.to(device) for tensor in self))


class PromptBatch(NamedTuple):
    """Prompts, padded on the left: `input_ids` and `attention_mask`, both (B, P) long."""

    input_ids: Tensor
    attention_mask: Tensor

    def to(self, device: torch.device | str) -> PromptBatch:
        return PromptBatch(*(tensor.to(device) for tensor in self))


def sequences(pairs: Sequence[tuple[list[int], list[int]]], pad_id: int) -> Batch:
    """Collate `(prompt_ids, completion_ids)` pairs; T is the length of the longest."""
    width = max(len(prompt) + len(completion) for prompt, completion in pairs)
    ids, attention, completion_mask = [], [], []
    for prompt, completion in pairs:
        padding = width - len(prompt) - len(completion)
        ids.append(prompt + completion + [pad_id] * padding)
        attention.append([1] * (width - padding) + [0] * padding)
        completion_mask.append([False] * len(prompt) + [True] * len(completion) + [False] * padding)
    return Batch(torch.tensor(ids), torch.tensor(attention), torch.tensor(completion_mask))


def prompts(prompt_ids: Sequence[list[int]], pad_id: int) -> PromptBatch:
    """Collate prompts for generation; P is the length of the longest."""
    width = max(map(len, prompt_ids))
    ids = [[pad_id] * (width - len(prompt)) + prompt for prompt in prompt_ids]
    attention = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompt_ids]
    return PromptBatch(torch.tensor(ids), torch.tensor(attention))


def packed(rows: Sequence[Packed], pad_id: int) -> PackedBatch:
    """Collate packed sequences; T is the length of the longest."""
    width = max(len(row.input_ids) for row in rows)

    def padded(values: Sequence[Sequence[int]], fill: int) -> Tensor:
        return torch.tensor([[*each, *[fill] * (width - len(each))] for each in values])

    segments = padded([row.segment_ids for row in rows], -1)
    same_example = segments[:, :, None] == segments[:, None, :]
    # Padding is an example of its own: a token that may look at nothing would make softmax give NaN.
    attention = same_example & torch.ones(width, width, dtype=torch.bool).tril()
    return PackedBatch(
        padded([row.input_ids for row in rows], pad_id),
        padded([row.position_ids for row in rows], 0),
        padded([row.completion_mask for row in rows], 0).bool(),
        attention[:, None],
    )
