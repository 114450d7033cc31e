"""vLLM gets the rollout's options and the current adapter. Its answers are used unchanged."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from configs.errors import UserError
from configs.load import load_experiment
from configs.schema import Rollout, Stage
from stages.models.roles import Roles
from stages.sampling import vllm_engine
from stages.sampling.sampler import Sampler, open_sampler
from tests.contract.bad_inputs.entry import check_message
from tests.support import vllm_stub
from tests.support.roles import ppo_roles, role_output, tiny_roles
from tests.support.runs import TINY
from tests.support.sampling import ALONE, sample_responses
from tests.support.vllm_stub import LLM, logprob_of

PROMPTS = [[5, 6, 7], [300], [10, 20, 30, 40], [8, 9]]
SEEDS = [3, 2**62 + 1, 4, 1]
GIB = 2**30


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[LLM]]:
    """The engines that a test starts, on a GPU with 6 of 10 GiB free."""
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6 * GIB, 10 * GIB))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    llms = vllm_stub.install(monkeypatch)
    yield llms
    assert not any(llm.running for llm in llms), "every engine is closed"


@pytest.fixture
def roles(adapters: dict[str, Path]) -> Roles:
    return ppo_roles(adapters)


def sampler_of(roles: Roles, tokenizer: Any, **rollout: Any) -> AbstractContextManager[Sampler]:
    return open_sampler(roles, tokenizer, ALONE, Rollout(engine="vllm", **({"max_new_tokens": 12} | rollout)))


def change_weights(roles: Roles, role: str = "policy") -> None:
    with torch.no_grad():
        for parameter in roles.role_parameters(role).values():
            parameter.add_(0.01)


# Calls


def test_prompts_and_seeds_arrive_in_order(engines, roles, tiny_tokenizer) -> None:
    with sampler_of(roles, tiny_tokenizer, batch_size=2, temperature=0.7) as sampler:
        responses = sampler.respond("policy", PROMPTS, SEEDS)
        (call,) = engines[0].calls
        assert call.prompts == PROMPTS
        assert [params.seed for params in call.params] == SEEDS
        assert {
            (prompt.temperature, prompt.top_k, prompt.top_p, prompt.max_tokens) for prompt in call.params
        } == {(0.7, 0, 1.0, 12)}
        assert all(params.stop_token_ids == [tiny_tokenizer.eos_token_id] for params in call.params)
        one_by_one = [
            sampler.respond("policy", [prompt], [seed])[0]
            for prompt, seed in zip(PROMPTS, SEEDS, strict=True)
        ]
        assert one_by_one == responses


def test_engine_is_the_base_with_room_for_the_adapters(engines, roles, tiny_tokenizer, tiny_folder) -> None:
    with sampler_of(roles, tiny_tokenizer, batch_size=5, vllm={"gpu_memory_utilization": 0.4}):
        pass
    (llm,) = engines
    assert llm.model == str(tiny_folder)
    options = llm.options
    assert (options.dtype, options.quantization) == ("float32", "bitsandbytes")
    assert (options.max_num_seqs, options.gpu_memory_utilization) == (5, 0.4)
    assert options.max_lora_rank == 8, "the next above 4"
    assert options.distributed_executor_backend == "external_launcher"
    assert options.logprobs_mode == "processed_logprobs" and not options.return_sampling_mask


def test_base_that_is_not_quantized_is_loaded_as_it_is(engines, adapters, tiny_tokenizer) -> None:
    roles = tiny_roles(quantization="none")
    roles.add_from("policy", adapters["sft"], trainable=True)
    with sampler_of(roles, tiny_tokenizer):
        pass
    assert engines[0].options.quantization is None


def test_engine_starts_once_and_stops_with_its_sampler(engines, roles, tiny_tokenizer) -> None:
    with sampler_of(roles, tiny_tokenizer) as sampler:
        (llm,) = engines
        for _ in range(2):
            sampler.respond("policy", [[5]], [1])
        assert [call.request.lora_int_id for call in llm.calls] == [1, 1]
        assert llm.running
    assert not llm.running


def test_engine_stops_if_sampling_fails(engines, roles, tiny_tokenizer) -> None:
    with pytest.raises(ZeroDivisionError), sampler_of(roles, tiny_tokenizer):
        _ = 1 / 0
    assert not engines[0].running


def test_next_sampler_starts_an_engine_of_its_own(engines, roles, tiny_tokenizer) -> None:
    answers = []
    for _ in range(2):
        with sampler_of(roles, tiny_tokenizer) as sampler:
            answers.append(sampler.respond("policy", [[5]], [1]))
    assert len(engines) == 2
    assert answers[0] == answers[1]


# Answers


def test_responses_are_tokens_with_their_logprobs_to_the_end_of_turn(engines, roles, tiny_tokenizer) -> None:
    seeds = list(range(40))
    with sampler_of(roles, tiny_tokenizer) as sampler:
        responses = sampler.respond("policy", [[5, 6]] * 40, seeds)
    end = tiny_tokenizer.eos_token_id
    assert end == vllm_stub.END
    for seed, response in zip(seeds, responses, strict=True):
        assert response.ids[-1] == end or len(response.ids) == 12
        assert end not in response.ids[:-1]
        assert response.logprobs == [
            logprob_of(seed, position, token) for position, token in enumerate(response.ids)
        ]
        assert response.support == []
    assert {response.ids[-1] == end for response in responses} == {True, False}


def test_tokens_that_could_be_sampled_are_kept(engines, roles, tiny_tokenizer) -> None:
    with sampler_of(roles, tiny_tokenizer, top_k=3, top_p=0.9) as sampler:
        responses = sampler.respond("policy", PROMPTS, SEEDS)
        assert engines[0].options.return_sampling_mask
        assert {(params.top_k, params.top_p) for params in engines[0].calls[0].params} == {(3, 0.9)}
        support = sampler.response_batch(PROMPTS, responses).support
        assert support is not None
        for row, response in zip(support, responses, strict=True):
            for allowed, token in zip(row, response.ids, strict=False):
                assert set(allowed.nonzero()[:, 0].tolist()) == {token, 5, 6}


# Adapters


def test_adapter_is_the_role_as_it_is_now(engines, adapters, roles, tiny_tokenizer) -> None:
    with sampler_of(roles, tiny_tokenizer) as sampler:
        sampler.respond("policy", [[5]], [1])
        first = engines[0].calls[0].request
        sampler.respond("policy", [[5]], [1])
        change_weights(roles)
        sampler.respond("policy", [[5]], [1])
        before, unchanged, after = engines[0].calls
        assert unchanged.request == first, "nothing has changed"
        assert after.request.lora_int_id > first.lora_int_id
        assert after.request.lora_path != first.lora_path and after.request.lora_name != first.lora_name
        assert before.adapter.keys() == after.adapter.keys()
        for name, tensor in before.adapter.items():
            assert torch.allclose(after.adapter[name], tensor + 0.01)
        parameters = roles.role_parameters("policy")
        for name, tensor in after.adapter.items():
            own_name = name.replace("base_model.model.", "causal.").replace(".weight", ".policy.weight")
            assert torch.equal(tensor, parameters[own_name])


def test_folder_is_one_of_pefts_and_the_old_one_goes(engines, roles, tiny_tokenizer) -> None:
    with sampler_of(roles, tiny_tokenizer) as sampler:
        folders = []
        for _ in range(2):
            change_weights(roles)
            sampler.respond("policy", [[5]], [1])
            folders.append(Path(engines[0].calls[-1].request.lora_path))
        assert not folders[0].exists() and folders[1].is_dir()
        assert list(folders[1].parent.iterdir()) == [folders[1]]
        model = PeftModel.from_pretrained(tiny_roles().causal, str(folders[1]))
        ids = torch.tensor([PROMPTS[0]])
        with torch.no_grad():
            expected = role_output(roles.eval(), "policy", ids)
            assert torch.allclose(model(input_ids=ids).logits, expected, atol=1e-4)


def test_roles_keep_adapters_of_their_own(engines, roles, tiny_tokenizer) -> None:
    with sampler_of(roles, tiny_tokenizer) as sampler:
        change_weights(roles)
        for role in ("policy", "reference", "base", "policy", "reference"):
            sampler.respond(role, [[5]], [1])
        policy, reference, base, *repeated = engines[0].calls
        assert base.request is None, "the base has no adapter"
        assert [call.request for call in repeated] == [policy.request, reference.request]
        assert policy.request.lora_int_id != reference.request.lora_int_id
        assert any(not torch.equal(policy.adapter[name], reference.adapter[name]) for name in policy.adapter)


def test_adapters_go_with_the_engine(engines, roles, tiny_tokenizer, tmp_path: Path) -> None:
    with sampler_of(roles, tiny_tokenizer) as sampler:
        sampler.respond("policy", [[5]], [1])
        assert len(list(tmp_path.glob("tristage-adapters-*"))) == 1
    assert not list(tmp_path.glob("tristage-adapters-*"))


# Refusals


def test_more_memory_than_is_free(engines, roles, tiny_tokenizer) -> None:
    sampler = sampler_of(roles, tiny_tokenizer, vllm={"gpu_memory_utilization": 0.7})
    with pytest.raises(UserError) as caught, sampler:
        pass
    check_message(
        str(caught.value),
        "rollout.vllm.gpu_memory_utilization: 0.7 of the GPU is 7.0 GiB",
        "6.0 GiB of 10.0 are free. Lower it",
    )
    assert not engines


def test_prompt_that_the_cache_does_not_hold(engines, roles, tiny_tokenizer) -> None:
    with sampler_of(roles, tiny_tokenizer) as sampler:
        sampler.respond("policy", [[5] * (vllm_stub.ROOM - 12)], [1])
        with pytest.raises(UserError) as caught:
            sampler.respond("policy", [[5], [5] * (vllm_stub.ROOM - 11)], [1, 2])
        check_message(
            str(caught.value),
            "rollout.vllm.gpu_memory_utilization: 0.3 of the GPU holds 1024 tokens",
            "1025 are needed. Raise it",
        )
        assert len(engines[0].calls) == 1


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine that has all that vLLM needs. A test removes some of it."""
    available: dict[str, Any] = {"modules": {"vllm", "vllm_bnb_plugin"}, "gpu": True, "bf16": True}
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: name if name in available["modules"] else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available["gpu"])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: available["bf16"])
    return available


def check(stage: Stage, *overrides: str) -> None:
    config = load_experiment(TINY, ["base.compute_dtype=auto", *overrides])
    vllm_engine.check_vllm(config, stage)


@pytest.mark.parametrize(
    ("missing", "parts"),
    [
        ({"modules": set()}, ["there is no Python module vllm here; install it", "pip install -e '.[vllm]'"]),
        ({"modules": {"vllm"}}, ["there is no Python module vllm_bnb_plugin here; install it"]),
        ({"gpu": False}, ["there is no GPU here. Run on one, or choose auto"]),
        ({"bf16": False}, ["its LoRA is for bf16, which this GPU does not compute in. Choose auto"]),
    ],
    ids=["vllm", "plugin", "gpu", "bf16"],
)
def test_machine_without(missing, parts, machine) -> None:
    check("ppo", "ppo.rollout.engine=vllm")
    machine.update(missing)
    with pytest.raises(UserError) as caught:
        check("ppo", "ppo.rollout.engine=vllm")
    check_message(str(caught.value), "ppo.rollout.engine: vllm: ", *parts)


@pytest.mark.parametrize(
    ("stage", "override", "key"),
    [
        ("rm", "rm.rankings.rollout.engine=vllm", "rm.rankings.rollout.engine"),
        ("best", "ppo.rollout.engine=vllm", "ppo.rollout.engine"),
        ("best", "best.rollout={engine: vllm, max_new_tokens: 4}", "best.rollout.engine"),
    ],
)
def test_key_of_the_stage_that_samples(stage: Stage, override, key, machine) -> None:
    machine["gpu"] = False
    with pytest.raises(UserError, match=f"^{key}: vllm: there is no GPU"):
        check(stage, override)


def test_stage_that_does_not_sample_with_it_needs_nothing(machine) -> None:
    machine.update(modules=set(), gpu=False)
    check("sft", "ppo.rollout.engine=vllm")
    check("rm", "ppo.rollout.engine=vllm")
    check("best", "ppo.rollout.engine=vllm", "best.rollout={max_new_tokens: 4}")
    check("ppo")


def test_plugin_is_for_a_quantized_base_alone(machine) -> None:
    machine["modules"] = {"vllm"}
    check("ppo", "ppo.rollout.engine=vllm", "base.quantization=none")


def test_vllm_is_imported_only_where_it_is_asked_for(
    engines, roles, tiny_tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # which makes its import fail
    auto = Rollout(engine="auto", max_new_tokens=4)
    assert len(sample_responses(roles, tiny_tokenizer, auto, [[5]], [1])) == 1
    with pytest.raises(ImportError), sampler_of(roles, tiny_tokenizer):
        pass
