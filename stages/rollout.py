"""Sampling from a role. The noise of a sample is a function of its seed alone, never of its batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from configs.schema import Rollout
from data.collate import prompts as collate_prompts
from data.sampler import micro_batches
from stages.cast import Players
from stages.decoding import Draw, Limits, Noise, Response, decode, generate
from stages.engine import Engine
from stages.flight import joinable
from stages.merged import MergedCopy
from stages.modeling import Roles
from stages.ranks import Ranks
from stages.token_figures import TokenFigures, Wanted
from stages.vllm_engine import vllm_engine

logger = logging.getLogger("tristage")


class Sampler:
    """Samples responses of roles."""

    def __init__(
        self, roles: Roles, tokenizer: PreTrainedTokenizerBase, ranks: Ranks, rollout: Rollout
    ) -> None:
        self.roles, self.tokenizer, self.ranks, self.rollout = roles, tokenizer, ranks, rollout

    def __call__(self, role: str, prompts: Sequence[list[int]], seeds: Sequence[int]) -> list[list[int]]:
        """The token ids of `respond`."""
        return [response.ids for response in self.respond(role, prompts, seeds)]

    def respond(
        self,
        role: str,
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        advance: Callable[[int], None] = lambda _: None,
    ) -> list[Response]:
        """Sample one response of `role` to each prompt of this rank.

        Args:
            prompts: token ids, not padded; as many on every rank.
            seeds: one for each prompt.
            advance: told how many responses have ended since it was told last.

        Returns:
            Each response; one that ended its turn closes with the end-of-turn token.
        """
        if self.rollout.engine == "vllm":
            engine = vllm_engine(self.roles, self.tokenizer, self.ranks, self.rollout)
            responses = engine.respond(role, prompts, seeds)
            advance(len(responses))
            return responses
        training = self.roles.training
        self.roles.eval()
        self.roles.activate(role)
        model = self.merged.holding(role) if self.merged else None
        responses = [Response()] * len(prompts)
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # so that little is padding
        for chunk in micro_batches(by_length, self._taken_together(len(prompts))):
            for row, response in self._batch(model, [prompts[i] for i in chunk], [seeds[i] for i in chunk]):
                responses[chunk[row]] = response
                advance(1)
        if self.merged:
            self.merged.let_go()
        self.roles.train(training)
        return responses

    @property
    def same_to_rounding(self) -> bool:
        """Whether sampling computes what the training model computes, to the rounding of fp32.

        Rotary frequencies that change with the length of a batch are not those that a key was cached with.
        """
        roles = self.roles
        rotary = str(getattr(roles.causal.config.get_text_config(), "rope_parameters", None))
        changes = "longrope" in rotary or "dynamic" in rotary
        is_fp32 = roles.dtype == torch.float32
        return self.rollout.engine != "vllm" and is_fp32 and not roles.is_int8 and not changes

    @cached_property
    def merged(self) -> MergedCopy | None:
        """The copy that is sampled from; None where it is the quantized base itself. Every rank must ask."""
        if self.rollout.engine == "hf":
            return None
        copy = MergedCopy(self.roles)
        short = self.ranks.sum({"short": float(not copy.fits(self.ranks.world))})["short"]
        if self.rollout.engine == "auto" and (short or self.roles.is_int8):
            why = f"{copy.size / 2**30:.2f} GiB are not free" if short else "the base is int8"
            logger.info("sampling without a merged copy: %s", why)
            return None
        logger.info("sampling on a merged copy of the base, %.2f GiB", copy.size / 2**30)
        return copy

    def _taken_together(self, prompts: int) -> int:
        """How many of so many prompts are handed over at once; not all of them need be in flight together."""
        engine, rows = self.rollout.engine, self.rollout.batch_size
        if engine == "vllm":
            return max(1, prompts)
        joins = engine in ("auto", "continuous") and joinable(self.roles.causal.config)
        return max(1, prompts) if joins and self.merged else rows

    def _batch(
        self, model: PreTrainedModel | None, prompts: Sequence[list[int]], seeds: Sequence[int]
    ) -> Iterable[tuple[int, Response]]:
        draw = Draw(Noise(seeds, self.ranks.device), self.rollout)
        limits = Limits(self.rollout.max_new_tokens, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id)
        if model is not None:
            return decode(model, prompts, draw, limits, self.rollout.batch_size)
        # ZeRO-3: all ranks must take part in every step.
        return enumerate(generate(self.roles.causal, prompts, draw, limits, in_step=self.ranks.world > 1))

    def shared(
        self,
        role: str,
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        advance: Callable[[int], None] = lambda _: None,
    ) -> list[Response]:
        """Share the work among ranks: every rank gets all responses, in the order of `prompts`."""
        found: list[tuple[int, Response]] = []
        share = self._taken_together(-(-len(prompts) // self.ranks.world))
        for chunk in self.ranks.rounds(list(range(len(prompts))), share):
            responses = self.respond(
                role,
                [prompts[i] for i in chunk.items],
                [seeds[i] for i in chunk.items],
                lambda ended: advance(ended * self.ranks.world),
            )
            found += list(zip(chunk.items, responses, strict=True)) * chunk.weight
        return [response for _, response in sorted(self.ranks.gather(found), key=lambda pair: pair[0])]

    def lay_out(self, prompts: Sequence[list[int]], responses: Sequence[Response]) -> Layout:
        """One batch of prompts and the responses that were sampled to them."""
        ids = [response.ids for response in responses]
        batch = lay_out(prompts, ids, self.tokenizer.pad_token_id, self.ranks.device)
        allowed = [response.support for response in responses] if self.rollout.truncates else None
        return replace(
            batch, temperature=self.rollout.temperature, allowed=allowed, vocabulary=self.roles.vocabulary
        )

    def decode(self, responses: Sequence[list[int]]) -> list[str]:
        """Responses as text, without special tokens."""
        return [text.strip() for text in self.tokenizer.batch_decode(responses, skip_special_tokens=True)]


@dataclass(frozen=True)
class Layout:
    """Prompts left-padded and responses right-padded, so that responses begin at one column.

    Attributes:
        input_ids: (B, P + R).
        attention_mask: (B, P + R).
        responses: (B, R) token ids.
        mask: (B, R) True on response tokens.
        start: P - 1, the position whose output tells the first response token.
        temperature: of the distribution that the responses were sampled from.
        allowed: for each row and token the ids that could be sampled; None where all could.
        vocabulary: V, what those ids are of.
    """

    input_ids: Tensor
    attention_mask: Tensor
    responses: Tensor
    mask: Tensor
    start: int
    temperature: float = 1.0
    allowed: Sequence[Sequence[np.ndarray]] | None = None
    vocabulary: int = 0

    @cached_property
    def support(self) -> Tensor | None:
        """(B, R, V) True on the tokens that could be sampled; None where all could."""
        if self.allowed is None:
            return None
        support = torch.zeros(*self.mask.shape, self.vocabulary, dtype=torch.bool)
        for row, of_row in zip(support, self.allowed, strict=True):
            for each, token_ids in zip(row, of_row, strict=False):
                each[torch.from_numpy(token_ids)] = True
        return support.to(self.mask.device)


def lay_out(
    prompts: Sequence[list[int]], responses: Sequence[list[int]], pad_id: int, device: torch.device
) -> Layout:
    """Pad prompts and their responses into one batch on `device`."""
    prompt_ids, prompt_mask = collate_prompts(list(prompts), pad_id)
    tensors = [torch.tensor(response, dtype=torch.long) for response in responses]  # of none as well
    response_ids = pad_sequence(tensors, batch_first=True, padding_value=pad_id)
    mask = pad_sequence([torch.ones_like(t, dtype=torch.bool) for t in tensors], batch_first=True)
    return Layout(
        torch.cat([prompt_ids, response_ids], 1).to(device),
        torch.cat([prompt_mask, mask.long()], 1).to(device),
        response_ids.to(device),
        mask.to(device),
        prompt_ids.shape[1] - 1,
    )


def response_figures(model: Engine | Players, role: str, batch: Layout, **wanted: Any) -> TokenFigures:
    """What `role` says of the response tokens, as choices of the distribution that was sampled from.

    Args:
        wanted: what is asked beside log-probabilities (see `Wanted`).
    """
    asked = Wanted(**wanted, temperature=batch.temperature, support=batch.support)
    ids, mask = batch.input_ids, batch.attention_mask
    figures: TokenFigures = model(role, ids, mask, None, batch.start, batch.responses, asked)
    return figures


def response_logprobs(model: Engine | Players, role: str, batch: Layout) -> Tensor:
    """Log-probability of each response token under `role`: (B, R), fp32."""
    return response_figures(model, role, batch).logprobs


def state_values(model: Engine | Players, role: str, batch: Layout) -> Tensor:
    """Scalar of `role` before the first response token and after each of them: (B, R + 1), fp32."""
    return model(role, batch.input_ids, batch.attention_mask, None, batch.start)


def sequence_scores(model: Engine | Players, role: str, batch: Layout) -> Tensor:
    """Scalar of `role` on the last response token, found by the mask: (B,), fp32."""
    return state_values(model, role, batch).gather(1, batch.mask.sum(1, keepdim=True)).squeeze(1)
