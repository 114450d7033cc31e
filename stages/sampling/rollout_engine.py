"""Rollout engines sample the responses of a role. The config key `rollout.engine` names the one to use.

To add an engine, write a class with `respond` and `close` (see `RolloutEngine`). Then give it a line in
`start_rollout_engine`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase

from configs.schema import Rollout
from data.batches.sampler import micro_batches
from stages.distributed.ranks import Ranks
from stages.models.roles import Roles
from stages.sampling.decoding import Limits, Noise, Response, TokenSampler, decode, generate
from stages.sampling.decoding_batch import supports_joining
from stages.sampling.merged_model import MergedCopy
from stages.sampling.vllm_engine import VllmEngine

logger = logging.getLogger("tristage")


class RolloutEngine(Protocol):
    """Samples responses of roles until it is closed."""

    def respond(
        self,
        role: str,
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        advance: Callable[[int], None],
    ) -> list[Response]:
        """Sample one response of `role`, with its current weights, to each prompt of this rank.

        Every rank must call. The ranks may have different numbers of prompts, but at least one each.

        Args:
            prompts: token ids, not padded.
            seeds: one for each prompt. A response depends only on its prompt and seed.
            advance: called with the number of responses that ended since its last call.

        Returns:
            Responses in the order of `prompts`. One that ended its turn closes with the end-of-turn token.
        """

    def close(self) -> None:
        """Free the memory of the engine. Nothing uses the engine after that."""


def start_rollout_engine(
    roles: Roles, tokenizer: PreTrainedTokenizerBase, ranks: Ranks, rollout: Rollout
) -> RolloutEngine:
    """Choose and start the engine that `rollout.engine` names. Every rank must call.

    `auto` chooses by the memory that is free at this moment, so a stage first starts the engine
    that trains. The caller closes the engine.

    Raises:
        UserError: vLLM was chosen, and `rollout.vllm` asks for more memory than is free.
    """
    limits = Limits(rollout.max_new_tokens, tokenizer.eos_token_id, tokenizer.pad_token_id)
    match rollout.engine:
        case "vllm":
            return VllmEngine(roles, tokenizer, ranks, rollout)
        case "hf":
            return GenerateEngine(roles, ranks, rollout, limits)
        case "merged":
            return MergedEngine(MergedCopy(roles), rollout, limits, continuous=False)
        case "continuous":
            return MergedEngine(MergedCopy(roles), rollout, limits, continuous=True)
        case "auto":
            copy = MergedCopy(roles)
            if obstacle := _obstacle_to_merging(copy, roles, ranks):
                logger.info("sampling without a merged copy: %s", obstacle)
                return GenerateEngine(roles, ranks, rollout, limits)
            return MergedEngine(copy, rollout, limits, continuous=True)


def _obstacle_to_merging(copy: MergedCopy, roles: Roles, ranks: Ranks) -> str:
    """Why `auto` does not merge; empty if it does. Every rank must call: all ranks choose alike."""
    if ranks.sum({"short": float(not copy.fits(ranks.world))})["short"]:
        return f"{copy.size / 2**30:.2f} GiB are not free"
    return "the base is int8" if roles.is_int8 else ""


def matches_training_model(roles: Roles, rollout: Rollout) -> bool:
    """Whether sampling computes what the training model computes, to the rounding of fp32.

    Some rotary frequencies change with the length of a batch. A cached key then keeps outdated ones.
    """
    rotary = str(getattr(roles.causal.config.get_text_config(), "rope_parameters", None))
    changes = "longrope" in rotary or "dynamic" in rotary
    is_fp32 = roles.dtype == torch.float32
    return rollout.engine != "vllm" and is_fp32 and not roles.is_int8 and not changes


class GenerateEngine:
    """transformers' `generate` on the quantized base (`hf`)."""

    def __init__(self, roles: Roles, ranks: Ranks, rollout: Rollout, limits: Limits) -> None:
        self._roles, self._ranks, self._rollout, self._limits = roles, ranks, rollout, limits

    def respond(
        self,
        role: str,
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        advance: Callable[[int], None],
    ) -> list[Response]:
        """See `RolloutEngine.respond`. All ranks forward equally often, because ZeRO-3 needs every rank."""
        training = self._roles.training
        self._roles.eval()
        self._roles.activate(role)
        responses = [Response()] * len(prompts)
        batches = micro_batches(by_length(prompts), self._rollout.batch_size)
        for number in range(self._ranks.max(len(batches))):
            # A rank with fewer batches repeats its last one, to take part in the others' forwards.
            rows = batches[min(number, len(batches) - 1)]
            noise = Noise([seeds[row] for row in rows], self._ranks.device)
            sampled = generate(
                self._roles.causal,
                [prompts[row] for row in rows],
                TokenSampler(noise, self._rollout),
                self._limits,
                synced=self._ranks.world > 1,
            )
            for row, response in zip(rows, sampled, strict=True):
                responses[row] = response
            if number < len(batches):
                advance(len(rows))
        self._roles.train(training)
        return responses

    def close(self) -> None:
        """Do nothing: training still uses the base."""


class MergedEngine:
    """A merged copy of the base (`merged`, `continuous`). It needs no other rank to sample.

    Attributes:
        copy: the model that samples.
    """

    def __init__(self, copy: MergedCopy, rollout: Rollout, limits: Limits, *, continuous: bool) -> None:
        """`continuous`: prompts join running sequences, if the base supports it. Else batches are fixed."""
        self.copy, self._rollout, self._limits = copy, rollout, limits
        logger.info("sampling on a merged copy of the base, %.2f GiB", copy.size / 2**30)
        self._joins = continuous and supports_joining(copy.model.config)

    def respond(
        self,
        role: str,
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        advance: Callable[[int], None],
    ) -> list[Response]:
        """See `RolloutEngine.respond`."""
        model, size = self.copy.load_role(role), self._rollout.batch_size
        responses = [Response()] * len(prompts)
        for rows in micro_batches(by_length(prompts), max(1, len(prompts)) if self._joins else size):
            noise = Noise([seeds[row] for row in rows], self.copy.device)
            token_sampler = TokenSampler(noise, self._rollout)
            batch = [prompts[row] for row in rows]
            for place, response in decode(model, batch, token_sampler, self._limits, size):
                responses[rows[place]] = response
                advance(1)
        self.copy.release()
        return responses

    def close(self) -> None:
        """Free the copy."""
        del self.copy


def by_length(prompts: Sequence[list[int]]) -> list[int]:
    """The rows of `prompts`, shortest first, so that a batch has little padding."""
    return sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
