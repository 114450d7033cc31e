"""Sampling in tests: an engine is opened, asked once and closed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from configs.schema import Rollout
from stages.distributed.ranks import Ranks
from stages.models.roles import Roles
from stages.sampling.decoding import Response
from stages.sampling.merged_model import MergedCopy
from stages.sampling.rollout_engine import MergedEngine
from stages.sampling.sampler import Sampler, open_sampler
from tests.support.roles import CPU

ALONE = Ranks(0, 1, CPU)


def sample_responses(
    roles: Roles,
    tokenizer: Any,
    rollout: Rollout,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    role: str = "policy",
) -> list[Response]:
    """One response of `role` to each prompt, by the engine that `rollout` names."""
    with open_sampler(roles, tokenizer, ALONE, rollout) as sampler:
        return sampler.respond(role, prompts, seeds)


def response_ids(responses: Sequence[Response]) -> list[list[int]]:
    return [response.ids for response in responses]


def merged_copy_of(sampler: Sampler) -> MergedCopy | None:
    """The copy that `sampler` samples from; None if it samples from the base."""
    return sampler.engine.copy if isinstance(sampler.engine, MergedEngine) else None
