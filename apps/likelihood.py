"""The log-probability of each token of given responses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from data.batches import collate
from data.batches.sampler import micro_batches
from stages.models.queries import TokenQuery
from stages.models.role_models import RoleForward
from stages.models.token_statistics import TokenStatistics
from stages.sampling.response_batch import response_batch, response_logprobs

Pair = tuple[list[int], list[int]]  # tokens of a prompt and of its response
Options = tuple[list[int], list[list[int]]]  # tokens of a prompt, and of each answer to choose from


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


@torch.no_grad()
def option_logprobs(
    model: RoleForward, role: str, rows: Sequence[Options], pad_id: int, device: torch.device, at_once: int
) -> list[list[list[float]]]:
    """Of each option of each row, the log-probability of each token after the row's prompt, in nats.

    The prompt is read once for all of its options. The base must take a mask of blocks (see
    `supports_block_mask`).

    Args:
        at_once: prompts in one forward.
    """
    found: list[list[list[float]]] = []
    for some in micro_batches(rows, at_once):
        # Each option begins with the prompt's last token, which predicts its first one.
        parts = [(prompt[:-1], [[prompt[-1], *option] for option in options]) for prompt, options in some]
        batch = collate.rankings(parts, pad_id).to(device)
        start = min(len(prompt) for prompt, _ in parts)
        query = TokenQuery(
            role,
            batch.input_ids,
            batch.attention_mask,
            batch.position_ids,
            start,
            targets=batch.input_ids[:, start + 1 :],
        )
        statistics: TokenStatistics = model(query)
        for logprobs, (prompt, options) in zip(statistics.logprobs, parts, strict=True):
            begins = accumulate(map(len, options), initial=len(prompt) - start)
            spans = zip(begins, options, strict=False)
            found.append([logprobs[at : at + len(option) - 1].tolist() for at, option in spans])
    return found
