"""Does an exported model compute what base and adapter compute? Compared on held-out responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from apps.likelihood import token_logprobs
from configs.schema import Rollout
from data.batches.tokenize import Prompt
from stages.maths.statistics import mean_with_interval
from stages.models.roles import Roles
from stages.sampling.decoding import Limits, Noise, Response, TokenSampler, generate

AT_ONCE = 16  # responses in a forward
GREEDY = 1e-4  # a temperature at which the noise of sampling decides nothing but exact ties


@dataclass(frozen=True)
class Probe:
    """Responses of a policy to held-out prompts, by which a copy of it is judged.

    Attributes:
        sampled: drawn at the run's own temperature, top-k and top-p.
        greedy: of which each token is the likeliest.
    """

    prompts: Sequence[list[int]]
    sampled: Sequence[list[int]]
    greedy: Sequence[list[int]]
    logprobs: Sequence[list[float]]


@dataclass(frozen=True)
class Difference:
    """How far a copy is from the policy, per response token, at temperature 1.

    Attributes:
        largest: absolute difference of log-probabilities, in nats.
        mean: mean absolute difference, in nats per token.
        signed: mean of copy less policy over responses, in nats per token, with `_low` and `_high`.
        same_greedy: how many greedy responses are the same, token by token.
        responses, tokens: how many were compared.
    """

    largest: float
    mean: float
    signed: dict[str, float]
    same_greedy: int
    responses: int
    tokens: int

    def __str__(self) -> str:
        return (
            f"log-probability per token: mean difference {self.mean:.2g}, largest {self.largest:.2g} nats "
            f"(n = {self.responses} held-out responses, {self.tokens} tokens); {self.same_greedy} of "
            f"{self.responses} greedy texts are the same"
        )


def probe(roles: Roles, role: str, prompts: Sequence[Prompt], rollout: Rollout, limits: Limits) -> Probe:
    """Sample responses of `role`, at the run's settings and greedily, with their log-probabilities."""
    ids = [prompt.prompt_ids for prompt in prompts]
    roles.activate(role)
    sampled = _responses(roles.causal, ids, rollout, limits)
    greedy = _responses(roles.causal, ids, _greedy(rollout), limits)
    return Probe(ids, sampled, greedy, _logprobs(roles, role, ids, sampled, limits.pad))


def compare(probed: Probe, copy: PreTrainedModel, rollout: Rollout, limits: Limits) -> Difference:
    """Compare `copy`, a plain causal model, with the policy that gave the responses of `probed`."""
    roles = Roles(copy.eval())
    logprobs = _logprobs(roles, "base", probed.prompts, probed.sampled, limits.pad)
    pairs = list(zip(logprobs, probed.logprobs, strict=True))
    differences = torch.tensor([a - b for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True)])
    of_each = [sum(ours) / len(ours) - sum(theirs) / len(theirs) for ours, theirs in pairs]
    greedy = _responses(copy, probed.prompts, _greedy(rollout), limits)
    return Difference(
        largest=float(differences.abs().max()),
        mean=float(differences.abs().mean()),
        signed=mean_with_interval("nats", of_each),
        same_greedy=sum(a == b for a, b in zip(greedy, probed.greedy, strict=True)),
        responses=len(pairs),
        tokens=len(differences),
    )


def _greedy(rollout: Rollout) -> Rollout:
    return rollout.model_copy(update={"temperature": GREEDY, "top_p": 1.0, "top_k": None})


def _responses(
    model: PreTrainedModel, prompts: Sequence[list[int]], rollout: Rollout, limits: Limits
) -> list[list[int]]:
    responses: list[Response] = []
    for first in range(0, len(prompts), AT_ONCE):
        some = prompts[first : first + AT_ONCE]
        noise = Noise(range(first, first + len(some)), model.device)
        responses += generate(model, some, TokenSampler(noise, rollout), limits, synced=False)
    return [response.ids for response in responses]


def _logprobs(
    roles: Roles, role: str, prompts: Sequence[list[int]], responses: Sequence[list[int]], pad: int
) -> list[list[float]]:
    pairs = list(zip(prompts, responses, strict=True))
    return token_logprobs(roles, role, pairs, pad, roles.causal.device, AT_ONCE)
