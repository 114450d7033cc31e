"""Token-by-token decoding: by transformers' `generate`, or by continuous batching (`decode`).

Both draw the same noise, so their responses differ only by rounding. `decode` needs no other rank. It
prefills a prompt once, for any number of responses. Waiting prompts take the rows of ended
sequences.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

from configs.schema import Rollout
from data.batches.collate import prompts as collate_prompts
from stages.sampling.decoding_batch import DecodingBatch

# Waiting prompts are prefilled once this share of the rows is free. A prefill takes its own forward, and a
# few rows that stay free for some steps cost little.
PREFILL_SHARE = 0.25
# Tokens of one block. Near the square root of usual vocabularies, sampling needs the least noise.
BLOCK = 256
# So many of the likeliest tokens usually reach a top-p. Only rows that they do not reach take more.
LIKELIEST = 256


@dataclass(frozen=True)
class Response:
    """A sampled response.

    Attributes:
        ids: its token ids.
        logprobs: the log-probability of each token in the distribution that it was sampled from.
        support: for each token, the ids that could be sampled; empty without top-k and top-p.
    """

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    support: list[np.ndarray] = field(default_factory=list)  # sent to other ranks faster than tensors


@dataclass(frozen=True)
class Limits:
    """When a response ends, and the token that pads a batch.

    Attributes:
        max_new_tokens: the most tokens of a response.
        end: id of the end-of-turn token.
        pad: id of the padding token.
    """

    max_new_tokens: int
    end: int
    pad: int

    def is_complete(self, ids: list[int]) -> bool:
        """Whether a response of these tokens is complete."""
        return ids[-1] == self.end or len(ids) == self.max_new_tokens


class Noise:
    """Standard Gumbel noise, the same on every device. Each sequence draws from its own generator.

    Attributes:
        rows: for each row of the batch, the index of its sequence's seed. At first: all, in order.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._generators, self._device = [np.random.default_rng(seed) for seed in seeds], device
        self.rows = list(range(len(seeds)))

    def __call__(self, count: int) -> Tensor:
        """`count` numbers from the generator of each row: (B, count), fp32."""
        exponential = np.empty((len(self.rows), count))
        for row, numbers in zip(self.rows, exponential, strict=True):
            self._generators[row].standard_exponential(out=numbers)
        return torch.from_numpy(exponential).log_().neg_().float().to(self._device)


def sample(logits: Tensor, noise: Callable[[int], Tensor]) -> tuple[Tensor, Tensor]:
    """Exact samples of softmax(logits) by the Gumbel-max trick: first a block of tokens, then a token.

    With standard Gumbel noise g, argmax(logits + g) is distributed as softmax(logits). The maximum over a
    block is distributed as Gumbel noise about the block's logsumexp (Maddison et al. 2014). So V/BLOCK +
    BLOCK random numbers replace V.

    Args:
        logits: (B, V), -inf on tokens that must not be sampled.
        noise: gives that many numbers for each row, as `Noise`.

    Returns:
        Tokens (B,) and their log-probabilities (B,), fp32.
    """
    if missing := -logits.shape[1] % BLOCK:
        logits = pad(logits, (0, missing), value=-math.inf)
    blocks = logits.float().unflatten(1, (-1, BLOCK))
    masses = blocks.logsumexp(2)
    drawn = noise(masses.shape[1] + BLOCK)
    block = (masses + drawn[:, BLOCK:]).argmax(1, keepdim=True)
    within = blocks.take_along_dim(block[:, :, None], 1).squeeze(1)
    token = (within + drawn[:, :BLOCK]).argmax(1, keepdim=True)
    logprobs = within.gather(1, token).squeeze(1) - masses.logsumexp(1)
    return (block * BLOCK + token).squeeze(1), logprobs


class TokenSampler(LogitsProcessor):
    """Warps logits, samples tokens, and records their log-probabilities.

    Attributes:
        tokens: (B,) the sampled token of each row at the last step.
        logprobs: for each step (B,), in the distribution that the tokens were sampled from.
        support: for each step and row the ids that could be sampled; empty without top-k and top-p.
    """

    def __init__(self, noise: Noise, rollout: Rollout) -> None:
        self.noise, self._warp, self._truncates = noise, logits_warpers(rollout), rollout.truncates
        self.tokens = torch.empty(0, dtype=torch.long)
        self.logprobs: list[Tensor] = []
        self.support: list[list[np.ndarray]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits (B, V) to logits (B, V): 0 on the sampled token of a row, -inf on all others."""
        self.sample(scores)
        return torch.full_like(scores, -math.inf).scatter_(1, self.tokens[:, None], 0.0)

    def sample(self, logits: Tensor) -> None:
        """Sample a token for each row of logits (B, V)."""
        warped = self._warp(torch.empty(0, dtype=torch.long), logits.float())  # warpers ignore earlier tokens
        self.tokens, logprobs = sample(warped, self.noise)
        self.logprobs.append(logprobs)
        if self._truncates:
            self.support.append([row.nonzero()[:, 0].int().cpu().numpy() for row in warped.isfinite()])

    def append_to(self, responses: Sequence[Response]) -> None:
        """Append the last step's tokens to the responses, one of each row."""
        rows = zip(responses, self.tokens.tolist(), self.logprobs[-1].tolist(), strict=True)
        for row, (response, token, logprob) in enumerate(rows):
            response.ids.append(token)
            response.logprobs.append(logprob)
            response.support.extend(of_step[row] for of_step in self.support[-1:])


def logits_warpers(rollout: Rollout) -> LogitsProcessorList:
    """Temperature, top-k and top-p of `rollout`. They set the logit of an excluded token to -inf."""
    warpers = LogitsProcessorList()
    if rollout.temperature != 1:
        warpers.append(TemperatureLogitsWarper(rollout.temperature))
    if rollout.top_k is not None:
        warpers.append(TopKLogitsWarper(rollout.top_k))
    if rollout.top_p < 1:
        warpers.append(TopP(rollout.top_p))
    return warpers


class TopP(LogitsProcessor):
    """Top-p: keeps the likeliest tokens that together reach the probability `p` (Holtzman et al. 2020).

    As transformers' `TopPLogitsWarper`, without its sort of the whole vocabulary. Tokens as likely as the
    last kept one stay, too: so what a row keeps depends on nothing but its logits.
    """

    def __init__(self, p: float) -> None:
        self._p = p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits (B, V) to logits (B, V): -inf on excluded tokens."""
        probabilities = scores.softmax(1)  # row by row: a sum over a batch may depend on its size
        return scores.masked_fill(probabilities < lowest_kept(probabilities, self._p), -math.inf)


def lowest_kept(probabilities: Tensor, p: float, likeliest: int = LIKELIEST) -> Tensor:
    """The lowest probability that top-p keeps in each row: probabilities (B, V) to (B, 1).

    A token is kept if the likelier ones have less than `p` together.
    """
    top = probabilities.topk(min(likeliest, probabilities.shape[1])).values
    reached = top.double().cumsum(1)
    lowest = top.gather(1, (reached[:, :-1] < p).sum(1, keepdim=True))
    short = reached[:, -1] < p
    if likeliest < probabilities.shape[1] and short.any():
        lowest[short] = lowest_kept(probabilities[short], p, 8 * likeliest)
    return lowest


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    token_sampler: TokenSampler,
    limits: Limits,
    synced: bool,
) -> list[Response]:
    """One response to each prompt, by transformers' `generate`.

    `synced`: all ranks forward equally often, because ZeRO-3 needs every rank in a forward.
    """
    input_ids, attention_mask = collate_prompts(prompts, limits.pad).to(model.device)
    with model.get_output_embeddings().register_forward_pre_hook(_contiguous):
        output = model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=GenerationConfig(
                max_new_tokens=limits.max_new_tokens,
                do_sample=False,  # `token_sampler` leaves one token to choose
                eos_token_id=limits.end,
                pad_token_id=limits.pad,
            ),
            logits_processor=LogitsProcessorList([token_sampler]),
            synced_gpus=synced,
        )
    rows = output[:, input_ids.shape[1] :].tolist()
    lengths = [row.index(limits.end) + 1 if limits.end in row else len(row) for row in rows]
    logprobs = torch.stack(token_sampler.logprobs, 1).tolist()
    supports = list(zip(*token_sampler.support, strict=True)) or [()] * len(rows)
    return [
        Response(ids[:length], ids_logprobs[:length], list(support[:length]))
        for ids, ids_logprobs, support, length in zip(rows, logprobs, supports, lengths, strict=True)
    ]


def _contiguous(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copy a slice of hidden states: in bf16 on a CPU, torch copies the head for every row of a slice."""
    return tuple(hidden.contiguous() for hidden in arguments)


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    token_sampler: TokenSampler,
    limits: Limits,
    batch_size: int,
) -> Iterator[tuple[int, Response]]:
    """Responses by continuous batching (Yu et al. 2022, Orca), on a model that no other rank shares.

    At most `batch_size` sequences run at a time. If there are more prompts, the model must let prompts join
    running sequences (see `supports_joining`).

    Yields:
        The index of a prompt and its response, as responses end.
    """
    responses = [Response() for _ in prompts]
    waiting, running = deque(range(len(prompts))), list[int]()
    batch = DecodingBatch(model, limits.pad)
    while waiting or running:
        free = batch_size - len(running)
        if waiting and free >= min(len(waiting), PREFILL_SHARE * batch_size):
            joining = [waiting.popleft() for _ in range(min(free, len(waiting)))]
            batch.prefill([prompts[i] for i in joining])
            running += joining
        token_sampler.noise.rows = running
        token_sampler.sample(batch.logits)
        token_sampler.append_to([responses[i] for i in running])
        tokens = token_sampler.tokens
        ended = [i for i in running if limits.is_complete(responses[i].ids)]
        yield from ((i, responses[i]) for i in ended)
        if ended:
            rows = [row for row, i in enumerate(running) if i not in ended]
            batch.keep(rows)
            tokens, running = tokens[rows], [running[row] for row in rows]
        if running:
            batch.decode_step(tokens)
