"""The engine on vLLM itself samples from the model that trains, as it is now."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="make test-vllm installs it")

from stages.distributed.ranks import Ranks
from stages.models.roles import Roles
from stages.sampling.sampler import Sampler, open_sampler
from tests.support.roles import new_role, tiny_roles
from tests.vllm.samples import PROMPTS, SEEDS, difference, ids, rollout, train

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="checks the CPU build of vLLM")


@pytest.fixture(scope="module")
def roles(wide_folder: Path) -> Roles:
    roles = new_role(tiny_roles(model=str(wide_folder), quantization="none"), "policy", 1)
    return new_role(roles, "reference", 2)


@pytest.fixture(scope="module")
def sampler(roles: Roles, tiny_tokenizer: Any, ranks: Ranks) -> Iterator[Sampler]:
    with open_sampler(roles, tiny_tokenizer, ranks, rollout()) as sampler:
        yield sampler


@pytest.mark.parametrize("role", ["policy", "reference", "base"])
def test_logprobs_are_those_of_the_model_that_trains(role: str, sampler: Sampler) -> None:
    """In fp32 they are equal to rounding. Those of another role are far away."""
    responses = sampler.respond(role, PROMPTS, SEEDS)
    assert difference(sampler, role, responses) < 2e-5
    assert all(
        difference(sampler, other, responses) > 0.5 for other in {"policy", "reference", "base"} - {role}
    )


def test_update_swaps_the_adapter(sampler: Sampler) -> None:
    stale = sampler.respond("policy", PROMPTS, SEEDS)
    train(sampler.roles)
    fresh = sampler.respond("policy", PROMPTS, SEEDS)
    assert difference(sampler, "policy", fresh) < 2e-5
    assert difference(sampler, "policy", stale) > 0.5, "which a stale adapter would give"


def test_response_is_a_function_of_prompt_and_seed(sampler: Sampler) -> None:
    together = ids(sampler.respond("policy", PROMPTS, SEEDS))
    alone = [ids(sampler.respond("policy", [p], [s]))[0] for p, s in zip(PROMPTS, SEEDS, strict=True)]
    assert together == alone
    others = ids(sampler.respond("policy", PROMPTS, [seed + 100 for seed in SEEDS]))
    assert all(one != other for one, other in zip(together, others, strict=True))


def test_responses_end_with_the_turn(sampler: Sampler, tiny_tokenizer: Any) -> None:
    responses = ids(sampler.respond("policy", [[5]] * 400, list(range(400))))
    end = tiny_tokenizer.eos_token_id
    assert all(end not in response[:-1] for response in responses)
    assert all(response[-1] == end or len(response) == 16 for response in responses)
    assert any(response[-1] == end for response in responses)


def test_no_statistics_are_sent(sampler: Sampler) -> None:
    from vllm.usage.usage_lib import is_usage_stats_enabled

    assert not is_usage_stats_enabled()
