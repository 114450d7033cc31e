"""Sequences that one rank continues together: prompts join them, and those that have ended leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from configs.errors import UserError
from configs.schema import Experiment, Stage
from data.batches.collate import prompts as collate_prompts
from stages.internals.torch import viewed_tensor

ROOM = 32  # tokens for which a layer of the cache takes memory ahead


class RoomyLayer(DynamicLayer):
    """As DynamicLayer, but copies all that it holds with one token in `ROOM` + 1, not with every one."""

    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens, (B, H, t, D) each; returns those of all, (B, H, T, D)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = _append(self.keys, key_states)
        self.values = _append(self.values, value_states)
        return self.keys, self.values


def _append(held: Tensor, new: Tensor) -> Tensor:
    """`new` behind `held`: in place where `held` is the front of a tensor that has room for it."""
    begin = held.shape[2] if held.numel() else 0
    end = begin + new.shape[2]
    whole = viewed_tensor(held)
    if whole is not None and end <= whole.shape[2]:
        whole[:, :, begin:end] = new
    else:
        room = new.new_empty(*new.shape[:2], ROOM, new.shape[3])
        whole = torch.cat([held, new, room], 2)
    return whole[:, :, :end]


def supports_joining(config: PretrainedConfig) -> bool:
    """Whether caches of different lengths can be joined: every layer keeps the keys of all tokens.

    A sliding window or a recurrent state has no place for padding that a mask would hide.
    """
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


class DecodingBatch:
    """The sequences in flight, in the order in which they came; a mask hides the padding on their left.

    Attributes:
        mask: (B, T) 1 on tokens, of which the cache holds keys and values.
        logits: (B, V) after the last token of each.
    """

    def __init__(self, model: PreTrainedModel, pad_id: int) -> None:
        """None yet. A model that is not `supports_joining` takes prompts once."""
        self._model, self._pad_id = model, pad_id
        self._cache = _cache_of(model)
        self.mask = torch.empty(0, 0, dtype=torch.long, device=model.device)
        self.logits = torch.empty(0)

    def admit(self, prompts: Sequence[list[int]]) -> None:
        """Read each distinct prompt once, in one forward, and add a sequence for each that asks it."""
        distinct = {tuple(prompt): number for number, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        input_ids, mask = collate_prompts(list(map(list, distinct)), self._pad_id).to(self._model.device)
        cache = _cache_of(self._model)
        logits = self._forward(input_ids, mask, cache)
        if len(distinct) < len(prompts):
            rows = torch.tensor([distinct[tuple(prompt)] for prompt in prompts], device=mask.device)
            cache.batch_select_indices(rows)
            mask, logits = mask[rows], logits[rows]
        if len(self.mask):
            self._join(cache, mask)
            logits = torch.cat([self.logits, logits])
        else:
            self._cache, self.mask = cache, mask
        self.logits = logits

    def _join(self, cache: DynamicCache, mask: Tensor) -> None:
        """Put other sequences below those there are, all as wide as the longest of them."""
        longest = int(max(self.mask.sum(1).amax(), mask.sum(1).amax()))
        self.mask = torch.cat([_at_width(longest, self.mask, -1), _at_width(longest, mask, -1)])
        layers: Any = zip(self._cache.layers, cache.layers, strict=True)
        for layer, other in layers:
            layer.keys = torch.cat([_at_width(longest, each.keys, -2) for each in (layer, other)])
            layer.values = torch.cat([_at_width(longest, each.values, -2) for each in (layer, other)])

    def keep(self, rows: list[int]) -> None:
        """Let all other sequences go; those that stay await their tokens."""
        index = torch.tensor(rows, dtype=torch.long, device=self.mask.device)
        self._cache.batch_select_indices(index)
        self.mask = self.mask[index]

    def extend(self, tokens: Tensor) -> None:
        """Add a token to each sequence: (B,)."""
        self.mask = pad(self.mask, (0, 1), value=1)
        self.logits = self._forward(tokens[:, None], self.mask, self._cache)

    def _forward(self, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        """(B, T) new tokens, after what the cache holds, to the logits of the last of them (B, V)."""
        positions = mask.cumsum(-1).sub(1).clamp(min=0)[:, -ids.shape[1] :]
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]


def _cache_of(model: PreTrainedModel) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _at_width(width: int, tensor: Tensor, axis: int) -> Tensor:
    """Pad the left of an axis, counted from the last, with zeros, or cut off what is padding there."""
    return pad(tensor, (0, 0) * (-axis - 1) + (width - tensor.shape[axis], 0))


def check_joinable(experiment: Experiment, stage: Stage, known: PretrainedConfig) -> None:
    """Raise UserError where `stage` asks for continuous batching of a policy that cannot do it."""
    key, rollout = experiment.rollouts.get(stage, ("", None))
    if rollout and rollout.engine == "continuous" and not supports_joining(known):
        raise UserError(
            f"{key}.engine: continuous, but {experiment.base.model!r} does not keep the keys of all tokens "
            "(it has sliding windows or recurrent layers), so that prompts cannot join sequences in flight. "
            "Set it to auto or merged, or use another base."
        )
