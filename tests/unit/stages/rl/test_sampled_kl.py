"""The KL that PPO penalises, logs and limits is that of the sampled distribution to the whole reference.

Every response that can be sampled is enumerated, so the KL is an exact sum, by hand, in float64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.schema import Ppo, Rollout
from data.batches.tokenize import Prompt
from stages.models.roles import Roles
from stages.rl.experience import ExperienceCollector
from stages.rl.trajectory import Trajectory
from stages.sampling.decoding import Response
from stages.sampling.sampler import open_sampler
from tests.support.roles import ppo_roles, reward_model_of
from tests.support.sampling import ALONE, naive_logits

PROMPT = [5, 6, 7]
CUT = {"temperature": 0.7, "top_k": 6, "top_p": 0.8}


@pytest.fixture
def roles(adapters: dict[str, Path]) -> Roles:
    return ppo_roles(adapters).eval()


def behaviour(roles: Roles, ids: list[int], rollout: Rollout) -> dict[int, float]:
    """Probability of each next token of the policy that can be sampled after `ids`."""
    full = (naive_logits(roles, "policy", ids)[-1] / rollout.temperature).softmax(0)
    likeliest = full.argsort(descending=True)[: rollout.top_k].tolist()
    total, kept, mass = float(full[likeliest].sum()), [], 0.0
    for token in likeliest:
        if mass < rollout.top_p * total:
            kept.append(token)
        mass += float(full[token])
    return {token: float(full[token] / full[kept].sum()) for token in kept}


def reference(roles: Roles, ids: list[int], token: int, temperature: float) -> float:
    """Log-probability of `token` after `ids` under the whole reference."""
    return float((naive_logits(roles, "reference", ids)[-1] / temperature).log_softmax(0)[token])


def every_response(roles: Roles, rollout: Rollout) -> list[tuple[float, float, Response]]:
    """Probability, log-ratio to the reference, and the response itself, for all responses of two tokens."""
    responses = []
    first = behaviour(roles, PROMPT, rollout)
    for one, p_one in first.items():
        second = behaviour(roles, [*PROMPT, one], rollout)
        for two, p_two in second.items():
            ref = reference(roles, PROMPT, one, rollout.temperature)
            ref += reference(roles, [*PROMPT, one], two, rollout.temperature)
            logprobs = [float(np.log(p_one)), float(np.log(p_two))]
            support = [np.array(sorted(tokens), dtype=np.int32) for tokens in (first, second)]
            responses.append((p_one * p_two, sum(logprobs) - ref, Response([one, two], logprobs, support)))
    return responses


def scored(
    roles: Roles, tokenizer: Any, rollout: Rollout, responses: list[Response], **ppo: Any
) -> Trajectory:
    options = Ppo(rollout=rollout, batch_size=len(responses), micro_batch_size=3, **ppo)
    prompts = [Prompt("prompt", "prompt", PROMPT)] * len(responses)
    with open_sampler(roles, tokenizer, ALONE, rollout) as sampler:
        collector = ExperienceCollector(options, sampler, reward_model_of(roles, tokenizer, ALONE), seed=0)
        return collector.score(prompts, responses)


@pytest.mark.parametrize("cut", [CUT, {"top_k": 6}, {"top_k": 12, "top_p": 0.5}], ids=str)
@pytest.mark.parametrize("old_logprobs", ["auto", "recomputed"])
def test_the_kl_equals_the_exact_sum_over_all_responses(cut, old_logprobs, roles, tiny_tokenizer) -> None:
    rollout = Rollout(engine="merged", max_new_tokens=2, **cut)
    probabilities, log_ratios, responses = map(list, zip(*every_response(roles, rollout), strict=True))
    assert sum(probabilities) == pytest.approx(1) and len(responses) > 4
    trajectory = scored(roles, tiny_tokenizer, rollout, responses, old_logprobs=old_logprobs)
    exact = sum(p * ratio for p, ratio in zip(probabilities, log_ratios, strict=True))
    assert float(torch.tensor(probabilities) @ trajectory.kl) == pytest.approx(exact, abs=1e-4)
    assert exact > 0.1, "truncation alone is a distance"
    assert trajectory.support_size == pytest.approx(np.mean([len(s) for r in responses for s in r.support]))


def test_a_policy_that_keeps_one_token_is_penalised(roles, tiny_tokenizer) -> None:
    """Renormalised on the kept token, policy and reference would agree, and the KL would be 0."""
    rollout = Rollout(engine="merged", max_new_tokens=2, top_k=1)
    ((_, log_ratio, response),) = every_response(roles, rollout)
    assert response.logprobs == [0.0, 0.0]
    trajectory = scored(roles, tiny_tokenizer, rollout, [response])
    assert trajectory.kl.tolist() == pytest.approx([log_ratio], abs=1e-4)
    assert log_ratio > 1


def test_without_truncation_the_kl_is_that_of_the_full_distributions(roles, tiny_tokenizer) -> None:
    rollout = Rollout(engine="merged", max_new_tokens=1, temperature=0.7)
    policy, ref = (
        (naive_logits(roles, role, PROMPT)[-1] / 0.7).log_softmax(0) for role in ("policy", "reference")
    )
    responses = [Response([token], [float(logprob)]) for token, logprob in enumerate(policy)]
    trajectory = scored(roles, tiny_tokenizer, rollout, responses)
    exact = float((policy.exp() * (policy - ref)).sum())
    assert float(policy.exp().float() @ trajectory.kl) == pytest.approx(exact, abs=1e-4)
    assert trajectory.support_size is None
