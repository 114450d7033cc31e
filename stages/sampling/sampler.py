"""Sampling from a role. The noise of a sample is a function of its seed alone, never of its batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from configs.schema import Rollout
from data.batches.sampler import micro_batches
from stages.distributed.ranks import Ranks
from stages.models.roles import Roles
from stages.sampling.decoding import Limits, Noise, Response, TokenSampler, decode, generate
from stages.sampling.decoding_batch import supports_joining
from stages.sampling.merged_model import MergedCopy
from stages.sampling.response_batch import ResponseBatch, response_batch
from stages.sampling.vllm_engine import vllm_engine

logger = logging.getLogger("tristage")


class Sampler:
    """Samples responses of roles."""

    def __init__(
        self, roles: Roles, tokenizer: PreTrainedTokenizerBase, ranks: Ranks, rollout: Rollout
    ) -> None:
        self.roles, self.tokenizer, self.ranks, self.rollout = roles, tokenizer, ranks, rollout

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
        model = self.merged.load_role(role) if self.merged else None
        responses = [Response()] * len(prompts)
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # so that little is padding
        for chunk in micro_batches(by_length, self._taken_together(len(prompts))):
            for row, response in self._batch(model, [prompts[i] for i in chunk], [seeds[i] for i in chunk]):
                responses[chunk[row]] = response
                advance(1)
        if self.merged:
            self.merged.release()
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
        joins = engine in ("auto", "continuous") and supports_joining(self.roles.causal.config)
        return max(1, prompts) if joins and self.merged else rows

    def _batch(
        self, model: PreTrainedModel | None, prompts: Sequence[list[int]], seeds: Sequence[int]
    ) -> Iterable[tuple[int, Response]]:
        draw = TokenSampler(Noise(seeds, self.ranks.device), self.rollout)
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

    def response_batch(self, prompts: Sequence[list[int]], responses: Sequence[Response]) -> ResponseBatch:
        """One batch of prompts and the responses that were sampled to them."""
        ids = [response.ids for response in responses]
        batch = response_batch(prompts, ids, self.tokenizer.pad_token_id, self.ranks.device)
        allowed = [response.support for response in responses] if self.rollout.truncates else None
        return replace(
            batch, temperature=self.rollout.temperature, allowed=allowed, vocabulary=self.roles.vocabulary
        )

    def decode(self, responses: Sequence[list[int]]) -> list[str]:
        """Responses as text, without special tokens."""
        return [text.strip() for text in self.tokenizer.batch_decode(responses, skip_special_tokens=True)]
