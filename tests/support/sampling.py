"""Sampling in tests: prompts, one call of an engine, and independent expectations of the samples."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from typing import Any

import torch

from configs.schema import Rollout, Vllm
from stages.distributed.ranks import Ranks
from stages.models.roles import Roles
from stages.sampling import vllm_engine
from stages.sampling.decoding import Response
from stages.sampling.merged_model import MergedCopy
from stages.sampling.rollout_engine import MergedEngine
from stages.sampling.sampler import Sampler, open_sampler
from tests.support.roles import CPU

ALONE = Ranks(0, 1, CPU)
EOS = 2
PROMPTS = [[5, 6, 7], [300], [10, 20, 30, 40, 50, 60, 70], [8, 9], [11] * 12, [200, 100], [1, 350, 4, 13]]
LANGUAGE_ROLES = ("base", "policy", "reference")
# Critical values of chi-square at 1 in 1,000
CHI_SQUARE_5, CHI_SQUARE_15, CHI_SQUARE_31 = 20.515, 37.697, 61.098


def sample_responses(
    roles: Roles,
    tokenizer: Any,
    rollout: Rollout,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    role: str = "policy",
) -> list[Response]:
    """One response of `role` to each prompt, from the engine that `rollout` names."""
    with open_sampler(roles, tokenizer, ALONE, rollout) as sampler:
        return sampler.respond(role, prompts, seeds)


def response_ids(responses: Sequence[Response]) -> list[list[int]]:
    return [response.ids for response in responses]


def merged_copy_of(sampler: Sampler) -> MergedCopy | None:
    """The copy that `sampler` samples from. None if it samples from the base."""
    return sampler.engine.copy if isinstance(sampler.engine, MergedEngine) else None


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    expected = probabilities.double() * counts.sum()
    assert expected.min() >= 5
    return float(((counts - expected) ** 2 / expected).sum())


def naive_logits(roles, role: str, ids: list[int]) -> torch.Tensor:
    """(T, V) logits of one sequence without padding, from transformers, cast to float64."""
    roles.activate(role)
    with torch.no_grad():
        return roles.causal(input_ids=torch.tensor([ids])).logits[0].double()


def sampler_of(roles: Roles, tokenizer: Any, **rollout: Any) -> AbstractContextManager[Sampler]:
    return open_sampler(roles, tokenizer, ALONE, Rollout(engine="vllm", **({"max_new_tokens": 12} | rollout)))


def on_gpu(roles: Roles, tokenizer: Any, **options: Any) -> closing[vllm_engine.VllmEngine]:
    rollout = Rollout(engine="vllm", max_new_tokens=12, vllm=Vllm(**options))
    ranks = Ranks(0, 1, torch.device("cuda"))
    return closing(vllm_engine.VllmEngine(roles, tokenizer, ranks, rollout))
