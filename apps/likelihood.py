"""The log-probability of each token of given responses."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from data.batches.sampler import micro_batches
from stages.models.role_models import RoleForward
from stages.sampling.response_batch import response_batch, response_logprobs

Pair = tuple[list[int], list[int]]  # tokens of a prompt and of its response


@torch.no_grad()
def token_logprobs(
    model: RoleForward, role: str, pairs: Sequence[Pair], pad_id: int, device: torch.device, at_once: int
) -> list[list[float]]:
    """Of each response, the log-probability of each token under `role`, at temperature 1, in nats.

    Args:
        at_once: pairs in one forward.
    """
    rows: list[list[float]] = []
    for some in micro_batches(pairs, at_once):
        prompts, responses = zip(*some, strict=True)
        batch = response_batch(prompts, responses, pad_id, device)
        logprobs = response_logprobs(model, role, batch)
        rows += [row[mask].tolist() for row, mask in zip(logprobs, batch.mask, strict=True)]
    return rows
