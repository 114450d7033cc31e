"""One token after another: by transformers' `generate`, or by a loop of our own.

Both draw the same noise, so that they differ by rounding alone. The loop needs no other rank, reads a prompt
that is asked for several responses once, and lets prompts that wait take the place of ended sequences.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
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
    TopPLogitsWarper,
)

from configs.schema import Rollout
from data.batches.collate import prompts as collate_prompts
from stages.sampling.decoding_batch import DecodingBatch

# Prompts that wait come in once so large a share of the rows is free: reading them takes a forward of its
# own, and a few rows that stay free for some steps cost little.
ADMITTED_TOGETHER = 0.25
# Tokens that are chosen among together: near the root of usual vocabularies, where the least noise does.
BLOCK = 256


@dataclass(frozen=True)
class Response:
    """A sampled response: token ids, and the log-probability of each when it was sampled.

    `support` holds the ids that could be sampled in place of each token, where top-k or top-p left some out.
    """

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    support: list[np.ndarray] = field(default_factory=list)  # tensors take long to send to other ranks


@dataclass(frozen=True)
class Limits:
    """Where a response ends, and which token fills what is left of a batch."""

    max_new_tokens: int
    end: int
    pad: int

    def reached(self, ids: list[int]) -> bool:
        """Whether a response of these tokens is whole."""
        return ids[-1] == self.end or len(ids) == self.max_new_tokens


class Noise:
    """Standard Gumbel noise, on every device the same; each sequence draws from a generator of its own.

    Attributes:
        rows: which sequence each row belongs to, by the place of its seed; at first all.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._generators, self._device = [np.random.default_rng(seed) for seed in seeds], device
        self.rows = list(range(len(seeds)))

    def __call__(self, count: int) -> Tensor:
        """So many numbers of each row's own: (B, count), fp32."""
        exponential = np.empty((len(self.rows), count))
        for row, numbers in zip(self.rows, exponential, strict=True):
            self._generators[row].standard_exponential(out=numbers)
        return torch.from_numpy(exponential).log_().neg_().float().to(self._device)


def sample(logits: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """Exact samples of softmax(logits) by the Gumbel-max trick, of blocks first and then of their tokens.

    argmax(logits + g) with g standard Gumbel is distributed as softmax(logits), and the largest of a block of
    its terms as Gumbel noise about the block's logsumexp (Maddison et al. 2014). So V/BLOCK + BLOCK
    numbers do for V.

    Args:
        logits: (B, V), -inf on what must not be chosen.

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
    """Warps logits and samples; keeps what is to be known of the tokens that were chosen.

    Attributes:
        tokens: the sample of each row (B,) at the last step.
        logprobs: of each step's tokens (B,), in the distribution that they were sampled from.
        support: for each step and row the ids that could be sampled; empty where all could.
    """

    def __init__(self, noise: Noise, rollout: Rollout) -> None:
        self.noise, self._warp, self._truncates = noise, warpers(rollout), rollout.truncates
        self.tokens = torch.empty(0, dtype=torch.long)
        self.logprobs: list[Tensor] = []
        self.support: list[list[np.ndarray]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) logits to others (B, V), whose largest in a row is its sample."""
        self.take(scores)
        return torch.full_like(scores, -math.inf).scatter_(1, self.tokens[:, None], 0.0)

    def take(self, logits: Tensor) -> None:
        """Sample a token for each row of logits (B, V)."""
        warped = self._warp(torch.empty(0, dtype=torch.long), logits.float())  # they look at no other tokens
        self.tokens, logprobs = sample(warped, self.noise)
        self.logprobs.append(logprobs)
        if self._truncates:
            self.support.append([row.nonzero()[:, 0].int().cpu().numpy() for row in warped.isfinite()])

    def tell(self, responses: Sequence[Response]) -> None:
        """Add the last tokens, and what is known of them, to the rows' responses."""
        chosen = zip(responses, self.tokens.tolist(), self.logprobs[-1].tolist(), strict=True)
        for row, (response, token, logprob) in enumerate(chosen):
            response.ids.append(token)
            response.logprobs.append(logprob)
            response.support.extend(each[row] for each in self.support[-1:])


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


@torch.no_grad()
def generate(
    model: PreTrainedModel, prompts: Sequence[list[int]], draw: TokenSampler, limits: Limits, in_step: bool
) -> list[Response]:
    """Responses by transformers' `generate`; `in_step` with the other ranks where a forward needs them."""
    input_ids, attention_mask = collate_prompts(prompts, limits.pad).to(model.device)
    with model.get_output_embeddings().register_forward_pre_hook(_contiguous):
        output = model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=GenerationConfig(
                max_new_tokens=limits.max_new_tokens,
                do_sample=False,  # `draw` leaves one token to choose
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


def _contiguous(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Hidden states of their own memory: in bf16 on a CPU, torch copies the head for each row of a slice."""
    return tuple(each.contiguous() for each in arguments)


@torch.no_grad()
def decode(
    model: PreTrainedModel, prompts: Sequence[list[int]], draw: TokenSampler, limits: Limits, at_once: int
) -> Iterator[tuple[int, Response]]:
    """Responses of a model that this rank has to itself, each with the place of its prompt, as they end.

    At most `at_once` sequences are in flight. Where there are more prompts, they wait until ended sequences
    have left room for some; this the model must allow (see `supports_joining`).
    """
    responses = [Response() for _ in prompts]
    waiting, flying = deque(range(len(prompts))), list[int]()
    flight = DecodingBatch(model, limits.pad)
    while waiting or flying:
        room = at_once - len(flying)
        if waiting and room >= min(len(waiting), ADMITTED_TOGETHER * at_once):
            admitted = [waiting.popleft() for _ in range(min(room, len(waiting)))]
            flight.admit([prompts[i] for i in admitted])
            flying += admitted
        draw.noise.rows = flying
        draw.take(flight.logits)
        draw.tell([responses[i] for i in flying])
        tokens = draw.tokens
        ended = [i for i in flying if limits.reached(responses[i].ids)]
        yield from ((i, responses[i]) for i in ended)
        if ended:
            going = [row for row, i in enumerate(flying) if i not in ended]
            flight.keep(going)
            tokens, flying = tokens[going], [flying[row] for row in going]
        if flying:
            flight.extend(tokens)
