"""A sampled response depends only on its role, prompt and seed."""

from typing import Any

import pytest
import torch

from configs.schema import Rollout
from stages.sampling.response_batch import (
    response_batch,
    response_statistics,
)
from stages.sampling.sampler import Sampler, open_sampler
from tests.support.roles import CPU, role_output
from tests.support.sampling import (
    ALONE,
    CHI_SQUARE_31,
    EOS,
    LANGUAGE_ROLES,
    PROMPTS,
    chi_square,
    response_ids,
    sample_responses,
)

NOTHING: Any = None  # for arguments that a test does not use


def sample_ids(roles, tokenizer, prompts, seeds, role="policy", **rollout: Any) -> list[list[int]]:
    """Token ids of sampled responses; `rollout` overrides 8 new tokens and 32 rows."""
    options = Rollout(**({"max_new_tokens": 8, "batch_size": 32} | rollout))
    return response_ids(sample_responses(roles, tokenizer, options, prompts, seeds, role))


@pytest.mark.parametrize("role", LANGUAGE_ROLES)
def test_first_token_is_a_sample_of_the_roles_softmax(role, roles, tiny_tokenizer):
    count = 4_000
    responses = sample_ids(
        roles, tiny_tokenizer, [[5, 6, 7]] * count, range(count), role=role, max_new_tokens=1, batch_size=1000
    )
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        probabilities = role_output(roles, role, ids)[0, -1].softmax(0)
    counts = torch.tensor(responses).flatten().bincount(minlength=384)
    # 32 buckets: the 31 likeliest tokens and all others; no top-k, no temperature, nothing forbidden
    top = probabilities.topk(31).indices
    rest = torch.ones(384, dtype=torch.bool)
    rest[top] = False
    buckets = torch.cat([counts[top], counts[rest].sum()[None]])
    expected_probabilities = torch.cat([probabilities[top], probabilities[rest].sum()[None]])
    assert chi_square(buckets, expected_probabilities) < CHI_SQUARE_31
    assert (counts[rest] > 0).sum() > 100


@pytest.mark.parametrize("token", ["own", "end"])
def test_no_token_is_held_back(token, roles, tiny_tokenizer):
    """The prompt's own token and the end of turn, each after the prompt that makes it likeliest."""
    prompts = torch.arange(384)[:, None]
    with torch.no_grad():
        probabilities = role_output(roles, "policy", prompts)[:, -1].softmax(1)
    likely = probabilities.diagonal() if token == "own" else probabilities[:, EOS]
    prompt, probability = int(likely.argmax()), float(likely.max())
    responses = sample_ids(
        roles, tiny_tokenizer, [[prompt]] * 4_000, range(4_000), max_new_tokens=1, batch_size=1000
    )
    count = responses.count([prompt if token == "own" else EOS])
    assert probability > 0.01
    assert abs(count - 4_000 * probability) < 4 * (4_000 * probability * (1 - probability)) ** 0.5


def test_surprise_of_samples_is_the_entropy(roles, tiny_tokenizer):
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(300)]
    responses = sample_ids(roles, tiny_tokenizer, prompts, range(300), batch_size=100)
    with torch.no_grad():
        batch = response_batch(prompts, responses, 0, CPU)
        logprobs, entropy, *_ = response_statistics(roles, "policy", batch, entropy=True)
    excess = (-logprobs - entropy)[batch.mask].double()  # mean 0 if sampled from what is reported
    assert len(excess) > 2_000
    assert abs(excess.mean()) < 4 * excess.std() / len(excess) ** 0.5
    # The band is narrow enough: with a temperature of 0.9, the test would fail.
    assert 4 * excess.std() / len(excess) ** 0.5 < 0.1


def test_response_depends_on_prompt_and_seed_alone(roles, tiny_tokenizer):
    seeds = [1000 + i for i in range(len(PROMPTS))]
    expected = sample_ids(roles, tiny_tokenizer, PROMPTS, seeds)
    assert len({tuple(response) for response in expected}) == len(PROMPTS)
    for batch_size in (1, 2, 3):
        assert sample_ids(roles, tiny_tokenizer, PROMPTS, seeds, batch_size=batch_size) == expected
    assert sample_ids(roles, tiny_tokenizer, PROMPTS[::-1], seeds[::-1]) == expected[::-1]
    other_prompts = [[20] * 30, PROMPTS[3], [1]]  # other padding and other prompts in the batch
    assert sample_ids(roles, tiny_tokenizer, other_prompts, [1, seeds[3], 2])[1] == expected[3]


def test_same_seed_same_response_whatever_torch_drew_before(roles, tiny_tokenizer):
    first = sample_ids(roles, tiny_tokenizer, PROMPTS, range(7))
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert sample_ids(roles, tiny_tokenizer, PROMPTS, range(7)) == first
    assert torch.equal(torch.get_rng_state(), state)
    changed = sample_ids(roles, tiny_tokenizer, PROMPTS, range(10, 17))
    assert all(a != b for a, b in zip(first, changed, strict=True))


def test_longer_limit_goes_on_with_the_same_response(roles, tiny_tokenizer):
    short = sample_ids(roles, tiny_tokenizer, PROMPTS, range(7), max_new_tokens=4)
    long = sample_ids(roles, tiny_tokenizer, PROMPTS, range(7), max_new_tokens=9)
    assert [response[:4] for response in long] == short


def test_responses_end_their_turn_or_reach_the_limit(roles, tiny_tokenizer):
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(80)]
    responses = sample_ids(roles, tiny_tokenizer, prompts, range(80), max_new_tokens=24, batch_size=40)
    ended = [response for response in responses if response[-1] == EOS]
    cut = [response for response in responses if response[-1] != EOS]
    assert ended and cut
    assert all(EOS not in response[:-1] and 1 <= len(response) <= 24 for response in ended)
    assert all(EOS not in response and len(response) == 24 for response in cut)


def test_pad_token_inside_a_response_is_kept(roles, tiny_tokenizer):
    # A policy may sample the pad token like any other; only the end of turn ends a response.
    prompts = [PROMPTS[0]] * 300
    responses = sample_ids(roles, tiny_tokenizer, prompts, range(300), max_new_tokens=8, batch_size=300)
    after_pad = [response[response.index(0) + 1 :] for response in responses if 0 in response[:-1]]
    assert any(any(id != 0 for id in rest) for rest in after_pad)


def test_sampling_leaves_training_mode_and_gradients_as_they_were(roles, tiny_tokenizer):
    for training in (True, False):
        roles.train(training)
        sample_ids(roles, tiny_tokenizer, PROMPTS[:1], [0], max_new_tokens=1)
        assert roles.training is training
        assert roles.causal.training is training
    roles.eval()
    assert torch.is_grad_enabled()


def test_sampling_in_training_mode_is_without_dropout(roles, tiny_tokenizer):
    expected = sample_ids(roles, tiny_tokenizer, PROMPTS, range(7))
    layers = [module for module in roles.modules() if isinstance(module, torch.nn.Dropout)]
    for layer in layers:
        layer.p = 0.5
    roles.causal.model.layers[0].self_attn.attention_dropout = 0.5
    roles.train()
    try:
        assert sample_ids(roles, tiny_tokenizer, PROMPTS, range(7)) == expected
    finally:
        roles.eval()
        roles.causal.model.layers[0].self_attn.attention_dropout = 0.0


def test_prompts_do_not_have_the_head_copied_for_each_of_their_rows(roles, tiny_tokenizer):
    """torch's bf16 product for CPUs copies the head for each row if its input is not contiguous."""
    rollout = Rollout(engine="hf", max_new_tokens=3)
    inputs_contiguous, outputs_contiguous = [], []
    head = roles.causal.get_output_embeddings()
    with (
        head.register_forward_pre_hook(
            lambda _, tensors: inputs_contiguous.append(tensors[0].is_contiguous())
        ),
        head.register_forward_hook(
            lambda _, tensors, __: outputs_contiguous.append(tensors[0].is_contiguous())
        ),
    ):
        sample_responses(roles, tiny_tokenizer, rollout, PROMPTS, range(len(PROMPTS)))
    assert inputs_contiguous == [False, True, True], "transformers' own slice of the prompts' hidden states"
    assert outputs_contiguous == [True] * 3


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_sharing_keeps_the_order_of_prompts(batch_size, roles, tiny_tokenizer):
    rollout = Rollout(max_new_tokens=4, batch_size=batch_size)
    advanced: list[int] = []
    with open_sampler(roles, tiny_tokenizer, ALONE, rollout) as sampler:
        responses = sampler.respond_on_all_ranks("policy", PROMPTS, range(7), advanced.append)
    assert [response.ids for response in responses] == sample_ids(
        roles, tiny_tokenizer, PROMPTS, range(7), max_new_tokens=4
    )
    assert sum(advanced) == 7


def test_decode_drops_special_tokens_and_white_space(tiny_tokenizer):
    ids = tiny_tokenizer("  the dog ", add_special_max_new_tokens=False).input_ids
    sampler = Sampler(NOTHING, tiny_tokenizer, ALONE, Rollout(), NOTHING)
    assert sampler.decode([[*ids, EOS], [1, *ids, 0, 0]]) == ["the dog", "the dog"]
