"""Sampled token ids, for tests that compare tokens alone."""

from __future__ import annotations

from collections.abc import Sequence

from stages.sampling.sampler import Sampler


def response_ids(
    sampler: Sampler, role: str, prompts: Sequence[list[int]], seeds: Sequence[int]
) -> list[list[int]]:
    """The token ids of one response of `role` to each prompt."""
    return [response.ids for response in sampler.respond(role, prompts, seeds)]
