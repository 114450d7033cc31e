"""vLLM beside a real model of 135 million parameters."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

pytest.importorskip("vllm", reason="make test-vllm installs it")

from stages.distributed.ranks import Ranks
from stages.models.demo_models import embedded_model
from stages.sampling.sampler import open_sampler
from tests.support.roles import new_role, tiny_roles
from tests.vllm.samples import PROMPTS, SEEDS, difference, rollout, train

pytestmark = [
    pytest.mark.smollm2,
    pytest.mark.skipif(torch.cuda.is_available(), reason="checks the CPU build of vLLM"),
]
MODEL = "smollm2-135m-instruct"


def test_logprobs_are_those_of_the_model_that_trains(ranks: Ranks) -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded_model(MODEL))
    roles = new_role(tiny_roles(model=MODEL, quantization="none"), "policy", 1)
    with open_sampler(roles, tokenizer, ranks, rollout()) as sampler:
        stale = sampler.respond("policy", PROMPTS, SEEDS)
        train(roles)
        fresh = sampler.respond("policy", PROMPTS, SEEDS)
        assert difference(sampler, "policy", fresh) < 1e-3
        assert difference(sampler, "policy", stale) > 0.1, "of a stale adapter"
