"""vLLM is asked for what a rollout is, with the adapter as it is now; its answers are read as they stand."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from stages.models.roles import Roles
from stages.sampling import vllm_checks
from tests.support import vllm_stub
from tests.support.roles import ppo_roles, role_output, tiny_roles
from tests.support.sampling import on_gpu, sampler_of
from tests.support.vllm_stub import logprob_of

PROMPTS = [[5, 6, 7], [300], [10, 20, 30, 40], [8, 9]]
SEEDS = [3, 2**62 + 1, 4, 1]


@pytest.fixture
def roles(adapters: dict[str, Path]) -> Roles:
    return ppo_roles(adapters, quantization="none")


def train(roles: Roles, role: str = "policy") -> None:
    with torch.no_grad():
        for parameter in roles.role_parameters(role).values():
            parameter.add_(0.01)


# What is asked


def test_prompts_and_seeds_arrive_in_order(started, roles, tiny_tokenizer) -> None:
    with sampler_of(roles, tiny_tokenizer, batch_size=2, temperature=0.7) as sampler:
        responses = sampler.respond("policy", PROMPTS, SEEDS)
        (call,) = started[0].calls
        assert call.prompts == PROMPTS
        assert [params.seed for params in call.params] == SEEDS
        assert {(p.temperature, p.top_k, p.top_p, p.max_tokens) for p in call.params} == {(0.7, 0, 1.0, 12)}
        assert all(params.stop_token_ids == [tiny_tokenizer.eos_token_id] for params in call.params)
        alone = [sampler.respond("policy", [p], [seed])[0] for p, seed in zip(PROMPTS, SEEDS, strict=True)]
        assert alone == responses


def test_engine_is_the_base_with_room_for_the_adapters(
    started, adapters, tiny_tokenizer, tiny_folder
) -> None:
    roles = ppo_roles(adapters, compute_dtype="bfloat16")
    options = {"gpu_memory_utilization": 0.4, "enforce_eager": True}
    with sampler_of(roles, tiny_tokenizer, batch_size=5, vllm=options):
        pass
    (llm,) = started
    assert llm.model == str(tiny_folder)
    options = llm.options
    assert (options.dtype, options.quantization) == ("bfloat16", "bitsandbytes")
    assert (options.max_num_seqs, options.gpu_memory_utilization) == (5, 0.4)
    assert options.enforce_eager and not options.enable_sleep_mode
    assert options.max_lora_rank == 8, "the next above 4"
    assert options.distributed_executor_backend == "external_launcher"
    assert options.logprobs_mode == "processed_logprobs" and not options.return_sampling_mask


def test_base_that_is_not_quantized_is_loaded_as_it_is(started, roles, tiny_tokenizer) -> None:
    with sampler_of(roles, tiny_tokenizer):
        pass
    options = started[0].options
    assert (options.dtype, options.quantization, options.enforce_eager) == ("float32", None, False)


def test_room_is_for_the_largest_rank_of_any_layer(started, roles, tiny_tokenizer) -> None:
    roles.peft_config("policy").rank_pattern = {"q_proj": 9}
    with sampler_of(roles, tiny_tokenizer):
        pass
    assert started[0].options.max_lora_rank == 16


def test_engine_starts_once_and_stops_with_its_sampler(started, roles, tiny_tokenizer) -> None:
    with sampler_of(roles, tiny_tokenizer) as sampler:
        (llm,) = started
        for _ in range(2):
            sampler.respond("policy", [[5]], [1])
        assert [call.request.lora_int_id for call in llm.calls] == [1, 1]
        assert llm.running
    assert not llm.running


def test_engine_stops_if_sampling_fails(started, roles, tiny_tokenizer) -> None:
    with pytest.raises(ZeroDivisionError), sampler_of(roles, tiny_tokenizer):
        _ = 1 / 0
    assert not started[0].running


def test_next_sampler_starts_an_engine_of_its_own(started, roles, tiny_tokenizer) -> None:
    answers = []
    for _ in range(2):
        with sampler_of(roles, tiny_tokenizer) as sampler:
            answers.append(sampler.respond("policy", [[5]], [1]))
    assert len(started) == 2
    assert answers[0] == answers[1]


# What is answered


def test_responses_are_tokens_with_their_logprobs_to_the_end_of_turn(started, roles, tiny_tokenizer) -> None:
    seeds = list(range(40))
    with sampler_of(roles, tiny_tokenizer) as sampler:
        responses = sampler.respond("policy", [[5, 6]] * 40, seeds)
    end = tiny_tokenizer.eos_token_id
    assert end == vllm_stub.END
    for seed, response in zip(seeds, responses, strict=True):
        assert response.ids[-1] == end or len(response.ids) == 12
        assert end not in response.ids[:-1]
        assert response.logprobs == [logprob_of(seed, at, token) for at, token in enumerate(response.ids)]
        assert response.support == []
    assert {response.ids[-1] == end for response in responses} == {True, False}


@pytest.mark.parametrize("masks", [True, False], ids=["masks", "likeliest"])
def test_tokens_that_could_be_sampled_are_kept(masks, started, roles, tiny_tokenizer, monkeypatch) -> None:
    """vLLM reports a mask. Without Triton it reports the log-probabilities of the likeliest tokens."""
    engines = vllm_stub.install(monkeypatch, triton=masks)
    with sampler_of(roles, tiny_tokenizer, top_k=3, top_p=0.9) as sampler:
        responses = sampler.respond("policy", PROMPTS, SEEDS)
        assert engines[0].options.return_sampling_mask == masks
        asked = {(params.top_k, params.top_p, params.logprobs) for params in engines[0].calls[0].params}
        assert asked == {(3, 0.9, 0 if masks else 3)}
        support = sampler.response_batch(PROMPTS, responses).support
        assert support is not None
        for row, response in zip(support, responses, strict=True):
            for allowed, token in zip(row, response.ids, strict=False):
                assert set(allowed.nonzero()[:, 0].tolist()) == {token, 5, 6}


# Adapters


def test_adapter_is_the_role_as_it_is_now(started, adapters, roles, tiny_tokenizer) -> None:
    with sampler_of(roles, tiny_tokenizer) as sampler:
        sampler.respond("policy", [[5]], [1])
        first = started[0].calls[0].request
        sampler.respond("policy", [[5]], [1])
        train(roles)
        sampler.respond("policy", [[5]], [1])
        before, same, after = started[0].calls
        assert same.request == first, "nothing has changed"
        assert after.request.lora_int_id > first.lora_int_id
        assert after.request.lora_path != first.lora_path and after.request.lora_name != first.lora_name
        assert before.adapter.keys() == after.adapter.keys()
        for name, tensor in before.adapter.items():
            assert torch.allclose(after.adapter[name], tensor + 0.01)
        held = roles.role_parameters("policy")
        for name, tensor in after.adapter.items():
            inside = name.replace("base_model.model.", "causal.").replace(".weight", ".policy.weight")
            assert torch.equal(tensor, held[inside])


def test_folder_is_one_of_pefts_and_the_old_one_goes(started, roles, tiny_tokenizer) -> None:
    with sampler_of(roles, tiny_tokenizer) as sampler:
        folders = []
        for _ in range(2):
            train(roles)
            sampler.respond("policy", [[5]], [1])
            folders.append(Path(started[0].calls[-1].request.lora_path))
        assert not folders[0].exists() and folders[1].is_dir()
        assert list(folders[1].parent.iterdir()) == [folders[1]]
        model = PeftModel.from_pretrained(tiny_roles(quantization="none").causal, str(folders[1]))
        ids = torch.tensor([PROMPTS[0]])
        with torch.no_grad():
            expected = role_output(roles.eval(), "policy", ids)
            assert torch.allclose(model(input_ids=ids).logits, expected, atol=1e-4)


def test_roles_keep_adapters_of_their_own(started, roles, tiny_tokenizer) -> None:
    with sampler_of(roles, tiny_tokenizer) as sampler:
        train(roles)
        for role in ("policy", "reference", "base", "policy", "reference"):
            sampler.respond(role, [[5]], [1])
        policy, reference, base, *again = started[0].calls
        assert base.request is None, "the base has no adapter"
        assert [call.request for call in again] == [policy.request, reference.request]
        assert policy.request.lora_int_id != reference.request.lora_int_id
        assert any(not torch.equal(policy.adapter[name], reference.adapter[name]) for name in policy.adapter)


def test_adapters_go_with_the_engine(started, roles, tiny_tokenizer, tmp_path: Path) -> None:
    with sampler_of(roles, tiny_tokenizer) as sampler:
        sampler.respond("policy", [[5]], [1])
        assert len(list(tmp_path.glob("tristage-adapters-*"))) == 1
    assert not list(tmp_path.glob("tristage-adapters-*"))


# The process that trains


def test_generators_are_as_before(started, roles, tiny_tokenizer) -> None:
    """vLLM seeds them when it starts and draws when it samples. Training was seeded for its step before."""

    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    def seed() -> None:
        random.seed(5), np.random.seed(6), torch.manual_seed(7)

    seed()
    expected = drawn()
    seed()
    with sampler_of(roles, tiny_tokenizer) as sampler:
        assert drawn() == expected, "after the start"
        seed()
        sampler.respond("policy", [[5]], [1])
        assert drawn() == expected, "after sampling"
        seed()
    assert drawn() == expected, "after the end"


def test_threads_and_variables_are_as_before(started, roles, tiny_tokenizer, monkeypatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    set_num_threads, variables = torch.set_num_threads, dict(os.environ)
    with sampler_of(roles, tiny_tokenizer):
        assert torch.set_num_threads is set_num_threads
        assert os.environ == variables


def test_process_group_outlives_the_engine(started, roles, tiny_tokenizer, monkeypatch) -> None:
    destroyed: list[Any] = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(
        torch.distributed, "destroy_process_group", lambda group=None: destroyed.append(group)
    )
    with sampler_of(roles, tiny_tokenizer):
        pass
    assert not started[0].running and destroyed == []


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, {"VLLM_NO_USAGE_STATS": "1"}),
        ({"VLLM_NO_USAGE_STATS": "0"}, {"VLLM_NO_USAGE_STATS": "0"}),
        ({"VLLM_DO_NOT_TRACK": "0"}, {"VLLM_DO_NOT_TRACK": "0"}),
        ({"DO_NOT_TRACK": "1"}, {"DO_NOT_TRACK": "1"}),
    ],
)
def test_telemetry_is_off_unless_the_user_says_otherwise(
    variables, expected, started, roles, tiny_tokenizer, monkeypatch
) -> None:
    for name in vllm_checks.TELEMETRY:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with sampler_of(roles, tiny_tokenizer):
        assert {name: os.environ[name] for name in vllm_checks.TELEMETRY if name in os.environ} == expected


def test_engine_sleeps_while_training(gpu, roles, tiny_tokenizer) -> None:
    with on_gpu(roles, tiny_tokenizer) as engine:
        assert gpu[0].options.enable_sleep_mode and gpu[0].asleep
        engine.respond("policy", [[5]], [1], lambda ended: None)
        assert gpu[0].asleep and len(gpu[0].calls) == 1
