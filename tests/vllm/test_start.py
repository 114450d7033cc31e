"""Engines on vLLM itself that differ in how they start: truncated sampling, NF4, what vLLM refuses."""

from __future__ import annotations

import gc
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm", reason="make test-vllm installs it")

from configs.errors import UserError
from stages.distributed.ranks import Ranks
from stages.models.roles import Roles
from stages.sampling.sampler import open_sampler
from tests.support.roles import new_role, role_output, tiny_roles
from tests.support.sampling import CHI_SQUARE_5, chi_square
from tests.vllm.samples import PROMPTS, SEEDS, difference, rollout, train

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="checks the CPU build of vLLM")


@pytest.fixture(scope="module")
def roles(wide_folder: Path) -> Roles:
    return new_role(tiny_roles(model=str(wide_folder), quantization="none"), "policy", 1)


def test_truncated_sampling(roles: Roles, tiny_tokenizer: Any, ranks: Ranks) -> None:
    """Support, log-probabilities and frequencies are those of temperature, then top-k, then top-p."""
    with open_sampler(roles, tiny_tokenizer, ranks, rollout(temperature=0.7, top_k=5, top_p=0.8)) as sampler:
        responses = sampler.respond("policy", PROMPTS, SEEDS)
        assert difference(sampler, "policy", responses) < 2e-5
        firsts = sampler.respond("policy", [[5, 6, 7]] * 2000, list(range(2000)))
    with torch.no_grad():
        logits = role_output(roles.eval(), "policy", torch.tensor([[5, 6, 7]]))[0, -1].double() / 0.7
    top = logits.topk(5)
    probabilities = top.values.softmax(0)
    kept = int((probabilities.cumsum(0) - probabilities < 0.8).sum())
    expected = top.indices[:kept]
    assert 2 <= kept <= 5
    assert {frozenset(response.support[0].tolist()) for response in firsts} == {frozenset(expected.tolist())}
    drawn = torch.tensor([response.ids[0] for response in firsts])
    counts = (drawn[:, None] == expected).sum(0)
    assert chi_square(counts, probabilities[:kept] / probabilities[:kept].sum()) < CHI_SQUARE_5


def test_nf4(bf16_folder: Path, tiny_tokenizer: Any, ranks: Ranks) -> None:
    """vLLM's plugin quantizes the base as transformers does. Both compute in bf16."""
    roles = tiny_roles(model=str(bf16_folder), quantization="nf4", compute_dtype="bfloat16")
    new_role(roles, "policy", 1)
    with open_sampler(roles, tiny_tokenizer, ranks, rollout()) as sampler:
        responses = sampler.respond("policy", PROMPTS, SEEDS)
        assert difference(sampler, "policy", responses) < 0.15
        train(roles)
        assert difference(sampler, "policy", responses) > 0.5, "of a stale adapter"


def test_base_that_the_kernels_do_not_run(tiny_tokenizer: Any, ranks: Ranks) -> None:
    roles = new_role(tiny_roles(quantization="none"), "policy", 1)
    with pytest.raises(UserError, match=r"vllm does not start with this base: .*head_dim=16"):
        open_sampler(roles, tiny_tokenizer, ranks, rollout()).__enter__()
    gc.collect()
    assert torch.distributed.is_initialized()


def test_more_memory_than_there_is(roles: Roles, tiny_tokenizer: Any, ranks: Ranks) -> None:
    too_much = rollout(vllm={"gpu_memory_utilization": 1.0})
    with pytest.raises(UserError, match=r"1 of the CPU's memory is .* Lower it"):
        open_sampler(roles, tiny_tokenizer, ranks, too_much).__enter__()


def test_process_is_left_as_it_was(roles: Roles, tiny_tokenizer: Any, ranks: Ranks) -> None:
    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    def seed() -> None:
        random.seed(5)
        np.random.seed(6)
        torch.manual_seed(7)

    def settings() -> tuple[Any, ...]:
        variables = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
        return variables, torch.set_num_threads, torch.get_num_threads(), os.sched_getaffinity(0)

    seed()
    expected, before = drawn(), settings()
    seed()
    with open_sampler(roles, tiny_tokenizer, ranks, rollout()) as sampler:
        assert drawn() == expected and settings() == before, "after the start"
        seed()
        sampler.respond("policy", PROMPTS, SEEDS)
        assert drawn() == expected and settings() == before, "after sampling"
        seed()
    assert drawn() == expected and settings() == before, "after the end"
    assert torch.distributed.is_initialized()
    torch.distributed.all_reduce(torch.ones(1))
