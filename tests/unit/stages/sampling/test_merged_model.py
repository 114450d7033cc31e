"""The merged copy computes the same as each role, follows the adapter, and changes nothing else."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest
import torch

from configs.schema import Rollout
from stages.sampling import merged_model
from stages.sampling.merged_model import MergedCopy
from stages.sampling.sampler import Sampler, open_sampler
from tests.support.roles import base_hash, ppo_roles, role_output, tensors_of
from tests.support.sampling import ALONE, merged_copy_of, response_ids

ROLES = ("base", "policy", "reference")
IDS = torch.arange(10, 40).view(2, 15)
PROMPTS = [[5, 6, 7], [8], [9, 10], [5, 6, 7]]


def role_logits(roles, role: str) -> torch.Tensor:
    with torch.no_grad():
        return role_output(roles, role, IDS)


def copy_logits(copy: MergedCopy, role: str) -> torch.Tensor:
    with torch.no_grad():
        return copy.load_role(role)(input_ids=IDS).logits


def sampler_of(roles, tokenizer, engine: str, **rollout) -> AbstractContextManager[Sampler]:
    options = {"max_new_tokens": 12} | rollout
    return open_sampler(roles, tokenizer, ALONE, Rollout(engine=engine, **options))


def copy_of(roles, tokenizer, engine: str) -> MergedCopy | None:
    with sampler_of(roles, tokenizer, engine) as sampler:
        return merged_copy_of(sampler)


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1e-4), ("bfloat16", 0.15)])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_logits_are_the_roles_own(
    quantization: str, packed: bool, dtype: str, rounding: float, adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    if dtype == "bfloat16":
        packed &= torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if not packed:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    roles = ppo_roles(adapters, quantization=quantization, compute_dtype=dtype).eval()
    with torch.no_grad():
        for parameter in roles.role_parameters("policy").values():
            parameter.mul_(1.5)  # no longer its reference
    copy = MergedCopy(roles)
    assert any(isinstance(module, merged_model.PackedLinear) for module in copy.model.modules()) == packed
    logits = {role: copy_logits(copy, role) for role in ROLES}
    for role in ROLES:
        torch.testing.assert_close(logits[role], role_logits(roles, role), rtol=0, atol=rounding)
    assert not torch.allclose(logits["policy"], logits["reference"], atol=1)
    assert not torch.allclose(logits["base"], logits["reference"], atol=1)


def test_base_and_adapters_are_only_read(adapters) -> None:
    roles = ppo_roles(adapters).eval()
    before, tensors = base_hash(roles), {role: tensors_of(roles, role) for role in ("policy", "reference")}
    copy = MergedCopy(roles)
    for role in ROLES:
        copy.load_role(role)
    assert base_hash(roles) == before
    for role, tensors_before in tensors.items():
        assert all(
            torch.equal(tensors_before[name], tensor) for name, tensor in tensors_of(roles, role).items()
        )


def test_copy_follows_the_policy_as_it_trains(adapters) -> None:
    roles = ppo_roles(adapters).eval()
    copy = MergedCopy(roles)
    before = copy_logits(copy, "policy")
    with torch.no_grad():
        for parameter in roles.role_parameters("policy").values():
            parameter.add_(0.05)
    after = copy_logits(copy, "policy")
    assert not torch.allclose(after, before, atol=1e-2)
    assert torch.allclose(after, role_logits(roles, "policy"), atol=1e-4)


@pytest.mark.parametrize("packed", [True, False])
def test_memory_is_given_back_between_rollouts_of_a_role_that_trains(
    packed: bool, adapters, tiny_tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not packed:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    engine = sampler_of(ppo_roles(adapters), tiny_tokenizer, "merged")

    def elements_held(copy: MergedCopy) -> int:
        modules = [target for target, _ in copy._merged]
        tensors = [module.packed if packed else module.weight for module in modules]
        return sum(tensor.numel() for tensor in tensors if not tensor.is_meta)

    sampled: dict[str, list[list[int]]] = {}
    with engine as sampler:
        copy = merged_copy_of(sampler)
        assert copy is not None
        for role, is_kept in (("policy", False), ("reference", True), ("policy", False)):
            responses = response_ids(sampler.respond(role, PROMPTS, range(4)))
            assert sampled.setdefault(role, responses) == responses
            assert (elements_held(copy) > 0) == is_kept


def test_what_needs_no_copy_is_shared(adapters) -> None:
    roles = ppo_roles(adapters)
    copy = MergedCopy(roles)
    model = copy.load_role("policy")
    embeddings = roles.causal.get_input_embeddings().weight
    assert model.get_input_embeddings().weight.data_ptr() == embeddings.data_ptr()
    assert copy.model.model.norm.weight is roles.causal.model.norm.weight
    linear = roles.causal.lm_head.weight.numel() + sum(
        layer.in_features * layer.out_features
        for layer in roles.causal.modules()
        if isinstance(layer, merged_model.Linear4bit)
    )
    assert copy.size == 4 * linear


@pytest.mark.parametrize("role", ROLES)
def test_both_engines_sample_the_same(role: str, adapters, tiny_tokenizer) -> None:
    roles, seeds = ppo_roles(adapters), [3, 1, 4, 5]
    with sampler_of(roles, tiny_tokenizer, "merged") as merged:
        merged_responses = merged.respond(role, PROMPTS, seeds)
    with sampler_of(roles, tiny_tokenizer, "hf") as hf:
        hf_responses = hf.respond(role, PROMPTS, seeds)
    assert [response.ids for response in merged_responses] == [response.ids for response in hf_responses]
    assert merged_responses[0].ids != merged_responses[3].ids, "one prompt, two seeds"
    for actual, expected in zip(merged_responses, hf_responses, strict=True):
        assert len(actual.logprobs) == len(actual.ids)
        assert actual.logprobs == pytest.approx(expected.logprobs, abs=1e-4)


def test_rows_that_end_leave_the_others_as_they_were(adapters, tiny_tokenizer) -> None:
    """Long responses, some of which end early. Each is the same as when sampled alone."""
    roles, seeds = ppo_roles(adapters), list(range(30))
    prompts = [PROMPTS[i % 4] for i in seeds]
    with sampler_of(roles, tiny_tokenizer, "merged", max_new_tokens=100) as sampler:
        batched = response_ids(sampler.respond("policy", prompts, seeds))
        ended = [i for i in seeds if len(batched[i]) < 100]
        assert len({len(batched[i]) for i in ended}) > 1, "responses must differ in length"
        for i in (*ended, 0, 29):
            assert response_ids(sampler.respond("policy", [prompts[i]], [seeds[i]])) == [batched[i]]


def test_auto_does_without_the_copy_where_it_would_not_be_exact(adapters, tiny_tokenizer) -> None:
    """Products with an int8 base also round activations to 8 bits, but the copy does not."""
    roles = ppo_roles(adapters, quantization="int8").eval()
    assert copy_of(roles, tiny_tokenizer, "auto") is None
    copy = copy_of(roles, tiny_tokenizer, "merged")
    assert copy is not None
    actual, expected = copy_logits(copy, "policy"), role_logits(roles, "policy")
    assert 1e-4 < (actual - expected).abs().mean() < 0.1 * expected.std()


def test_auto_does_without_the_copy_where_memory_is_short(
    adapters, tiny_tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles = ppo_roles(adapters)
    assert copy_of(roles, tiny_tokenizer, "auto") is not None
    monkeypatch.setattr(merged_model, "free_ram", lambda: 1000)
    assert copy_of(roles, tiny_tokenizer, "auto") is None
    assert copy_of(roles, tiny_tokenizer, "merged") is not None, "it was asked for"
    assert copy_of(roles, tiny_tokenizer, "hf") is None
