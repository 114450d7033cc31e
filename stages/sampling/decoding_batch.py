"""The running sequences of one rank. Prompts join them by a prefill, and ended sequences leave."""

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

SPARE = 32  # tokens for which a cache layer allocates memory ahead


class PreallocatedLayer(DynamicLayer):
    """A DynamicLayer that copies its keys and values once in `SPARE` + 1 tokens, not at every token."""

    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens, (B, H, t, D) each; returns those of all, (B, H, T, D)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = _append(self.keys, key_states)
        self.values = _append(self.values, value_states)
        return self.keys, self.values


def _append(cached: Tensor, new: Tensor) -> Tensor:
    """`cached` (B, H, T, D) followed by `new` (B, H, t, D); in place if spare memory follows `cached`."""
    begin = cached.shape[2] if cached.numel() else 0
    end = begin + new.shape[2]
    whole = viewed_tensor(cached)
    if whole is not None and end <= whole.shape[2]:
        whole[:, :, begin:end] = new
    else:
        spare = new.new_empty(*new.shape[:2], SPARE, new.shape[3])
        whole = torch.cat([cached, new, spare], 2)
    return whole[:, :, :end]


def supports_joining(config: PretrainedConfig) -> bool:
    """Whether caches of different lengths can be joined: every layer keeps the keys of all tokens.

    A sliding window or a recurrent state cannot hold padding that a mask hides.
    """
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


class DecodingBatch:
    """Running sequences in the order in which they joined, left-padded.

    Attributes:
        mask: (B, T) 1 on tokens, 0 on padding. The cache holds keys and values of these T positions.
        logits: (B, V) after the last token of each sequence.
    """

    def __init__(self, model: PreTrainedModel, pad_id: int) -> None:
        """Start without sequences. `prefill` may be called once if the model does not support joining."""
        self._model, self._pad_id = model, pad_id
        self._cache = _cache_of(model)
        self.mask = torch.empty(0, 0, dtype=torch.long, device=model.device)
        self.logits = torch.empty(0)

    def prefill(self, prompts: Sequence[list[int]]) -> None:
        """Add one sequence for each prompt. One forward reads every distinct prompt once."""
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
        """Append the rows of another cache. The width becomes that of the longest sequence."""
        longest = int(max(self.mask.sum(1).amax(), mask.sum(1).amax()))
        self.mask = torch.cat([_at_width(longest, self.mask, -1), _at_width(longest, mask, -1)])
        layers: Any = zip(self._cache.layers, cache.layers, strict=True)
        for layer, other in layers:
            layer.keys = torch.cat([_at_width(longest, part.keys, -2) for part in (layer, other)])
            layer.values = torch.cat([_at_width(longest, part.values, -2) for part in (layer, other)])

    def keep(self, rows: list[int]) -> None:
        """Drop all other sequences. The rest then need `decode_step`, because `logits` still has all rows."""
        index = torch.tensor(rows, dtype=torch.long, device=self.mask.device)
        self._cache.batch_select_indices(index)
        self.mask = self.mask[index]

    def decode_step(self, tokens: Tensor) -> None:
        """Append a token to each sequence, (B,), and compute the logits after it."""
        self.mask = pad(self.mask, (0, 1), value=1)
        self.logits = self._forward(tokens[:, None], self.mask, self._cache)

    def _forward(self, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        """New tokens (B, t), which follow the cached ones, to the logits after the last of them (B, V)."""
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
    cache.layers = [PreallocatedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _at_width(width: int, tensor: Tensor, axis: int) -> Tensor:
    """Bring `axis` (negative) to `width`: add zeros on its left, or cut padding off there."""
    return pad(tensor, (0, 0) * (-axis - 1) + (width - tensor.shape[axis], 0))


def check_joinable(experiment: Experiment, stage: Stage, model_config: PretrainedConfig) -> None:
    """Raise UserError if `stage` uses continuous batching and the policy's model does not support it."""
    key, rollout = experiment.rollouts.get(stage, ("", None))
    if rollout and rollout.engine == "continuous" and not supports_joining(model_config):
        raise UserError(
            f"{key}.engine: continuous, but {experiment.base.model!r} does not keep the keys of all tokens "
            "(it has sliding windows or recurrent layers), so prompts cannot join running sequences. "
            "Set it to auto or merged, or use another base."
        )
