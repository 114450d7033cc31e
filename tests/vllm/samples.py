"""What the tests sample with vLLM, and how far it is from the model that trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from configs.schema import Rollout
from stages.models.roles import Roles
from stages.sampling.decoding import Response
from stages.sampling.sampler import Sampler
from tests.support.roles import role_output

PROMPTS = [[5, 6, 7], [300], [10, 20, 30, 40], [8, 9], [11] * 12, [200, 100], [1, 350, 4, 13], [9]]
SEEDS = [3, 2**62 + 1, 4, 1, 5, 6, 7, 8]


def rollout(**options: Any) -> Rollout:
    vllm = {"gpu_memory_utilization": 0.2, "enforce_eager": True}
    return Rollout(**({"engine": "vllm", "max_new_tokens": 16, "vllm": vllm} | options))


def difference(sampler: Sampler, role: str, responses: Sequence[Response]) -> float:
    """The largest distance between a log-probability as sampled and that of the model that trains."""
    batch = sampler.response_batch(PROMPTS, responses)
    with torch.no_grad():
        logits = role_output(
            sampler.roles.eval(), role, batch.input_ids, batch.attention_mask, start=batch.start
        )
    logits = logits[:, :-1].float() / batch.temperature
    if batch.support is not None:
        logits = logits.masked_fill(~batch.support, -1e9)
    logprobs = logits.log_softmax(-1).gather(2, batch.responses[..., None]).squeeze(2)
    sampled = torch.nn.utils.rnn.pad_sequence([torch.tensor(r.logprobs) for r in responses], batch_first=True)
    return float(((logprobs - sampled).abs() * batch.mask).max())


def ids(responses: Sequence[Response]) -> list[list[int]]:
    return [response.ids for response in responses]


def train(roles: Roles) -> None:
    with torch.no_grad():
        for parameter in roles.role_parameters("policy").values():
            parameter.add_(0.02)


def letters(prompts: list[str], completions: list[str]) -> list[float]:
    """A labeller that tells random text apart."""
    return [float(sum(letter.isalpha() for letter in completion)) for completion in completions]
