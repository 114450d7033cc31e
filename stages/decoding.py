"""One token after another, greedily over noisy logits: by transformers' `generate`, or by a loop of our own.

Both draw the same noise, so that they differ by rounding alone. The loop needs no other rank, runs a prompt
that is asked for several responses once, and leaves out rows that have ended their turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from configs.schema import Rollout
from data.collate import prompts as collate_prompts


@dataclass(frozen=True)
class Response:
    """A sampled response: token ids, and the log-probability of each when it was sampled.

    `support` holds the ids that could be sampled in place of each token, where top-k or top-p left some out.
    """

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    support: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Limits:
    """Where a response ends, and which token fills what is left of a batch."""

    max_new_tokens: int
    end: int
    pad: int


class GumbelNoise(LogitsProcessor):
    """Adds Gumbel noise to the logits, so that the greedy choice is an exact sample at temperature 1.

    argmax(logits + g) with g standard Gumbel is distributed as softmax(logits) (Gumbel-max trick,
    Gumbel 1954; Maddison et al. 2014). Each row draws from a generator of its own.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) logits to (B, V) noisy logits, fp32."""
        # On a CPU, `exponential_` takes one logarithm at a time; these are the same numbers in half the time.
        exponential = torch.empty(scores.shape, dtype=torch.float64, device=scores.device)
        for row, generator in zip(exponential, self._generators, strict=True):
            row.uniform_(generator=generator)
        exponential.neg_().log1p_().neg_()
        return scores.float() - exponential.float().log_()

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows alone; each draws what it would have drawn among all."""
        self._generators = [self._generators[row] for row in rows]


class Draw(LogitsProcessor):
    """Warps logits and adds noise; keeps what is to be known of the tokens that will be chosen.

    Attributes:
        logprobs: of each step's tokens (B,), in the distribution that they were sampled from.
        support: for each step and row the ids that could be sampled; empty where all could.
    """

    def __init__(self, noise: GumbelNoise, rollout: Rollout) -> None:
        self.noise, self._warp, self._truncates = noise, warpers(rollout), rollout.truncates
        self.logprobs: list[Tensor] = []
        self.support: list[list[Tensor]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) logits to (B, V) noisy logits, fp32; the largest of a row is its sample."""
        warped = self._warp(input_ids, scores.float())
        noisy = self.noise(input_ids, warped)
        self.logprobs.append(_logprobs(warped, noisy.argmax(-1)))
        if self._truncates:
            self.support.append([row.nonzero()[:, 0].int().cpu() for row in warped.isfinite()])
        return noisy


def warpers(rollout: Rollout) -> LogitsProcessorList:
    """What makes logits those of the distribution to sample from, -inf where a token is left out."""
    found = LogitsProcessorList()
    if rollout.temperature != 1:
        found.append(TemperatureLogitsWarper(rollout.temperature))
    if rollout.top_k is not None:
        found.append(TopKLogitsWarper(rollout.top_k))
    if rollout.top_p < 1:
        found.append(TopPLogitsWarper(rollout.top_p))
    return found


def _logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """(B, V) logits and (B,) tokens to the tokens' log-probabilities (B,)."""
    return logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)


@torch.no_grad()
def generate(
    model: PreTrainedModel, prompts: Sequence[list[int]], draw: Draw, limits: Limits, in_step: bool
) -> list[Response]:
    """Responses by transformers' `generate`; `in_step` with the other ranks where a forward needs them."""
    input_ids, attention_mask = collate_prompts(prompts, limits.pad).to(model.device)
    output = model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        generation_config=GenerationConfig(
            max_new_tokens=limits.max_new_tokens,
            do_sample=False,  # greedy over noisy logits
            eos_token_id=limits.end,
            pad_token_id=limits.pad,
        ),
        logits_processor=LogitsProcessorList([draw]),
        synced_gpus=in_step,
    )
    rows = output[:, input_ids.shape[1] :].tolist()
    lengths = [row.index(limits.end) + 1 if limits.end in row else len(row) for row in rows]
    logprobs = torch.stack(draw.logprobs, 1).tolist()
    supports = list(zip(*draw.support, strict=True)) or [()] * len(rows)
    return [
        Response(ids[:n], of_ids[:n], list(support[:n]))
        for ids, of_ids, support, n in zip(rows, logprobs, supports, lengths, strict=True)
    ]


@torch.no_grad()
def decode(
    model: PreTrainedModel, prompts: Sequence[list[int]], draw: Draw, limits: Limits
) -> list[Response]:
    """Responses of a model that this rank has to itself."""
    cache = DynamicCache(config=model.config)
    mask, logits = _read_prompts(model, prompts, cache, limits.pad)
    responses = [Response() for _ in prompts]
    alive = list(range(len(prompts)))
    for step in range(1, limits.max_new_tokens + 1):
        tokens = draw(mask, logits).argmax(-1)
        chosen = tokens.tolist()
        for i, (token, logprob) in enumerate(zip(chosen, draw.logprobs[-1].tolist(), strict=True)):
            response = responses[alive[i]]
            response.ids.append(token)
            response.logprobs.append(logprob)
            response.support.extend(each[i] for each in draw.support[-1:])
        going = [i for i, token in enumerate(chosen) if token != limits.end]
        if not going or step == limits.max_new_tokens:
            break
        if len(going) < len(alive):
            rows = torch.tensor(going, device=mask.device)
            cache.batch_select_indices(rows)
            draw.noise.keep(going)
            mask, tokens, alive = mask[rows], tokens[rows], [alive[i] for i in going]
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        logits = _forward(model, tokens[:, None], mask, cache)
    return responses


def _read_prompts(
    model: PreTrainedModel, prompts: Sequence[list[int]], cache: DynamicCache, pad: int
) -> tuple[Tensor, Tensor]:
    """Fill the cache with each distinct prompt once and spread it over the rows that ask it.

    Returns:
        Attention mask (B, P), and the logits after each row's prompt (B, V).
    """
    distinct = {tuple(prompt): number for number, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    input_ids, mask = collate_prompts(list(map(list, distinct)), pad).to(model.device)
    logits = _forward(model, input_ids, mask, cache)
    if len(distinct) == len(prompts):
        return mask, logits
    rows = torch.tensor([distinct[tuple(prompt)] for prompt in prompts], device=mask.device)
    cache.batch_select_indices(rows)
    return mask[rows], logits[rows]


def _forward(model: PreTrainedModel, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
    """(B, T) new tokens, after what the cache holds, to the logits of the last of them (B, V)."""
    positions = mask.cumsum(-1).sub(1).clamp(min=0)[:, -ids.shape[1] :]
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1]
