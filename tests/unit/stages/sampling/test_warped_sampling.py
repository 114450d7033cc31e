"""With temperature, top-k and top-p, samples and log-probabilities are of the warped distribution."""

import math

import pytest
import torch
from transformers import TopPLogitsWarper

from configs.schema import Rollout
from stages.sampling.decoding import TopP
from stages.sampling.response_batch import (
    response_statistics,
)
from stages.sampling.sampler import open_sampler
from tests.support.sampling import (
    ALONE,
    PROMPTS,
    naive_logits,
    response_ids,
    sample_responses,
)

WARPED = ({"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.5}, {"temperature": 1.5, "top_k": 20, "top_p": 0.8})


def warped(logits: torch.Tensor, rollout: Rollout) -> torch.Tensor:
    """Probabilities (V,) by the definitions, in float64, token by token."""
    probabilities = (logits.double() / rollout.temperature).softmax(0)
    order = sorted(range(len(logits)), key=lambda id: -float(probabilities[id]))
    order = order[: rollout.top_k]
    total = sum(float(probabilities[id]) for id in order)
    kept, mass = [], 0.0
    for id in order:
        if mass < rollout.top_p * total:
            kept.append(id)
        mass += float(probabilities[id])
    allowed = torch.zeros_like(probabilities)
    allowed[kept] = probabilities[kept]
    return allowed / allowed.sum()


@pytest.mark.parametrize("engine", ["hf", "merged", "continuous"])
@pytest.mark.parametrize("options", WARPED, ids=str)
def test_log_probabilities_are_of_the_distribution_sampled_from(engine, options, roles, tiny_tokenizer):
    rollout = Rollout(engine=engine, max_new_tokens=6, batch_size=16, **options)
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(40)]
    with open_sampler(roles, tiny_tokenizer, ALONE, rollout) as sampler:
        responses = sampler.respond("policy", prompts, range(40))
        responses[0].ids[3:], responses[0].support[3:] = [], []  # one is shorter
        batch = sampler.response_batch(prompts, responses)
    with torch.no_grad():
        logprobs = response_statistics(roles, "policy", batch).logprobs
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        logits = naive_logits(roles, "policy", prompt + response.ids)[len(prompt) - 1 :]
        for t, id in enumerate(response.ids):
            probabilities = warped(logits[t], rollout)
            expected = math.log(probabilities[id])
            assert response.logprobs[t] == pytest.approx(expected, abs=1e-4)
            assert logprobs[i, t].item() == pytest.approx(expected, abs=1e-4)
            if rollout.truncates:
                assert response.support[t].tolist() == probabilities.nonzero()[:, 0].tolist()


@pytest.mark.parametrize("options", WARPED, ids=str)
def test_first_token_is_a_sample_of_the_warped_softmax(options, roles, tiny_tokenizer):
    rollout = Rollout(max_new_tokens=1, batch_size=1000, **options)
    sampled = sample_responses(roles, tiny_tokenizer, rollout, [[5, 6, 7]] * 4_000, range(4_000))
    responses = response_ids(sampled)
    probabilities = warped(naive_logits(roles, "policy", [5, 6, 7])[-1], rollout)
    counts = torch.tensor(responses).flatten().bincount(minlength=384)
    assert not counts[probabilities == 0].any()
    top = probabilities.topk(5).indices
    rest = counts.sum() - counts[top].sum()
    excess = (counts[top] - 4_000 * probabilities[top]) / (4_000 * probabilities[top]).sqrt()
    assert excess.abs().max() < 4
    assert abs(rest - 4_000 * (1 - probabilities[top].sum())) < 4 * 4_000**0.5


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("scale", [0.5, 3.0, 12.0])  # from thousands of tokens to a few
def test_top_p_keeps_what_that_of_transformers_keeps(p, scale):
    logits = scale * torch.randn(16, 5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids = torch.empty(0, dtype=torch.long)
    assert torch.equal(TopP(p)(ids, logits), TopPLogitsWarper(p)(ids, logits))


def test_top_p_of_a_row_does_not_depend_on_the_batch():
    """A flat row needs more of the likeliest tokens than the others, and ties end its list."""
    generator = torch.Generator().manual_seed(0)
    peaked, flat = 12 * torch.randn(3, 50_000, generator=generator), torch.zeros(1, 50_000)
    tied = torch.randn(2, 50_000, generator=generator).bfloat16().float()
    logits, ids = torch.cat([peaked, flat, tied]), torch.empty(0, dtype=torch.long)
    together = TopP(0.9)(ids, logits)
    assert torch.equal(together, torch.cat([TopP(0.9)(ids, row[None]) for row in logits]))
    assert together[3].isfinite().all(), "equally likely tokens stay together"


def test_top_p_after_top_k_ignores_excluded_tokens():
    logits = torch.tensor([[3.0, 2.0, 1.0, -math.inf, -math.inf]])
    assert TopP(0.9)(torch.empty(0), logits).isfinite().tolist() == [[True, True, False, False, False]]
    assert TopP(0.99)(torch.empty(0), logits).isfinite().tolist() == [[True, True, True, False, False]]
