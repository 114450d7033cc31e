"""What a sampler answers, as tests compare it."""

from __future__ import annotations

from collections.abc import Sequence

from stages.sampling.sampler import Sampler


def sampled_ids(
    sampler: Sampler, role: str, prompts: Sequence[list[int]], seeds: Sequence[int]
) -> list[list[int]]:
    """The token ids of each response."""
    return [response.ids for response in sampler.respond(role, prompts, seeds)]
