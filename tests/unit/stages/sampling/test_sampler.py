"""Sampling is from the softmax and depends on nothing but prompt and seed; what is read off a batch is what
each sequence alone would give."""

import math
from typing import Any

import pytest
import torch

from configs.schema import Rollout
from stages.sampling import decoding
from stages.sampling.decoding import Noise, sample
from stages.sampling.response_batch import (
    ResponseBatch,
    response_batch,
    response_statistics,
    sequence_scores,
    state_values,
)
from stages.sampling.sampler import Sampler, open_sampler
from tests.support.roles import CPU, ppo_roles
from tests.support.sampling import ALONE, response_ids, sample_responses

NOTHING: Any = None  # where nothing asks them
EOS = 2
PROMPTS = [[5, 6, 7], [300], [10, 20, 30, 40, 50, 60, 70], [8, 9], [11] * 12, [200, 100], [1, 350, 4, 13]]
RESPONSES = [[40, 41, 2], [77], [9, 8, 7, 6, 5], [2], [100, 200, 300, 2], [15, 16], [350, 1, 0, 2]]
LANGUAGE_ROLES = ("base", "policy", "reference")


@pytest.fixture(scope="module")
def roles(adapters):
    roles = ppo_roles(adapters)
    roles.eval()
    return roles


# One token

# Critical values of chi-square at 1 in 1,000
CHI_SQUARE_5, CHI_SQUARE_15, CHI_SQUARE_31 = 20.515, 37.697, 61.098


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    expected = probabilities.double() * counts.sum()
    assert expected.min() >= 5
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.fixture(params=[1, 4, 256])
def block(request, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(decoding, "BLOCK", request.param)
    return request.param


@pytest.mark.parametrize(("size", "critical"), [(6, CHI_SQUARE_5), (32, CHI_SQUARE_31)])
def test_tokens_are_samples_of_the_softmax(size, critical, block):
    logits = torch.linspace(-1.5, 1.5, size)[torch.randperm(size, generator=torch.Generator().manual_seed(0))]
    picks, _ = sample(logits.expand(20_000, size), Noise(range(20_000), CPU))
    assert chi_square(picks.bincount(minlength=size), logits.softmax(0)) < critical


def test_logprobs_are_those_of_the_softmax(block):
    logits = 3 * torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    picks, logprobs = sample(logits, Noise(range(50), CPU))
    torch.testing.assert_close(logprobs, logits.log_softmax(1).gather(1, picks[:, None])[:, 0])


def test_what_was_left_out_is_never_sampled(block):
    logits = torch.full((500, 30), -math.inf)
    logits[:, [3, 17, 29]] = torch.tensor([0.0, 1.0, -1.0])
    picks, logprobs = sample(logits, Noise(range(500), CPU))
    assert set(picks.tolist()) == {3, 17, 29}
    assert logprobs.isfinite().all()


def test_noise_is_gumbels():
    noise = Noise([0], CPU)(200_000)[0].double()
    # mean is Euler's constant 0.57722, variance pi^2 / 6 = 1.64493; standard errors 0.003 and 0.009
    assert noise.mean().item() == pytest.approx(0.57722, abs=0.01)
    assert noise.var().item() == pytest.approx(1.64493, abs=0.03)
    assert noise.isfinite().all()


def test_choices_of_one_row_are_independent_from_step_to_step(block):
    logits = torch.tensor([0.5, 0.0, -0.5, 1.0])
    noise = Noise(range(8_000), CPU)
    first, second = (sample(logits.expand(8_000, 4), noise)[0] for _ in range(2))
    probabilities = logits.softmax(0)
    joint = (probabilities[:, None] * probabilities).flatten()
    assert chi_square((first * 4 + second).bincount(minlength=16), joint) < CHI_SQUARE_15


def test_noise_of_a_row_is_a_function_of_its_seed():
    together, alone = Noise([7, 8, 7], CPU), Noise([8], CPU)
    for _ in range(3):
        rows = together(40)
        assert torch.equal(rows[1:2], alone(40))
        assert torch.equal(rows[0], rows[2])
        assert not torch.isclose(rows[0], rows[1]).any()


def test_sampling_is_in_fp32():
    logits = torch.randn(200, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    found, expected = (sample(each, Noise(range(200), CPU)) for each in (logits, logits.float()))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert found[1].dtype == torch.float32


# Sampling


def draw(roles, tokenizer, prompts, seeds, *, role="policy", tokens=8, batch_size=32) -> list[list[int]]:
    rollout = Rollout(max_new_tokens=tokens, batch_size=batch_size)
    return response_ids(sample_responses(roles, tokenizer, rollout, prompts, seeds, role))


@pytest.mark.parametrize("role", LANGUAGE_ROLES)
def test_first_token_is_a_sample_of_the_roles_softmax(role, roles, tiny_tokenizer):
    count = 4_000
    responses = draw(
        roles, tiny_tokenizer, [[5, 6, 7]] * count, range(count), role=role, tokens=1, batch_size=1000
    )
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        probabilities = roles(role, ids, torch.ones_like(ids))[0, -1].softmax(0)
    counts = torch.tensor(responses).flatten().bincount(minlength=384)
    # 32 buckets: the 31 likeliest tokens and all others; no top-k, no temperature, nothing forbidden
    top = probabilities.topk(31).indices
    rest = torch.ones(384, dtype=torch.bool)
    rest[top] = False
    buckets = torch.cat([counts[top], counts[rest].sum()[None]])
    wanted = torch.cat([probabilities[top], probabilities[rest].sum()[None]])
    assert chi_square(buckets, wanted) < CHI_SQUARE_31
    assert (counts[rest] > 0).sum() > 100


@pytest.mark.parametrize("watched", ["own", "end"])
def test_no_token_is_held_back(watched, roles, tiny_tokenizer):
    """Neither the prompt's own token nor the end of turn, each after the prompt that makes it likeliest."""
    prompts = torch.arange(384)[:, None]
    with torch.no_grad():
        probabilities = roles("policy", prompts, torch.ones_like(prompts))[:, -1].softmax(1)
    likely = probabilities.diagonal() if watched == "own" else probabilities[:, EOS]
    prompt, probability = int(likely.argmax()), float(likely.max())
    responses = draw(roles, tiny_tokenizer, [[prompt]] * 4_000, range(4_000), tokens=1, batch_size=1000)
    count = responses.count([prompt if watched == "own" else EOS])
    assert probability > 0.01
    assert abs(count - 4_000 * probability) < 4 * (4_000 * probability * (1 - probability)) ** 0.5


def test_surprise_of_samples_is_the_entropy(roles, tiny_tokenizer):
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(300)]
    responses = draw(roles, tiny_tokenizer, prompts, range(300), batch_size=100)
    with torch.no_grad():
        batch = response_batch(prompts, responses, 0, CPU)
        logprobs, entropy, *_ = response_statistics(roles, "policy", batch, entropy=True)
    excess = (-logprobs - entropy)[batch.mask].double()  # mean 0 if sampled from what is reported
    assert len(excess) > 2_000
    assert abs(excess.mean()) < 4 * excess.std() / len(excess) ** 0.5
    # That band has power: a temperature of 0.9 would be found out.
    assert 4 * excess.std() / len(excess) ** 0.5 < 0.1


def test_response_depends_on_prompt_and_seed_alone(roles, tiny_tokenizer):
    seeds = [1000 + i for i in range(len(PROMPTS))]
    together = draw(roles, tiny_tokenizer, PROMPTS, seeds)
    assert len({tuple(response) for response in together}) == len(PROMPTS)
    for batch_size in (1, 2, 3):
        assert draw(roles, tiny_tokenizer, PROMPTS, seeds, batch_size=batch_size) == together
    assert draw(roles, tiny_tokenizer, PROMPTS[::-1], seeds[::-1]) == together[::-1]
    others = [[20] * 30, PROMPTS[3], [1]]  # another padding, another company
    assert draw(roles, tiny_tokenizer, others, [1, seeds[3], 2])[1] == together[3]


def test_same_seed_same_response_whatever_torch_drew_before(roles, tiny_tokenizer):
    first = draw(roles, tiny_tokenizer, PROMPTS, range(7))
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert draw(roles, tiny_tokenizer, PROMPTS, range(7)) == first
    assert torch.equal(torch.get_rng_state(), state)
    changed = draw(roles, tiny_tokenizer, PROMPTS, range(10, 17))
    assert all(a != b for a, b in zip(first, changed, strict=True))


def test_longer_limit_goes_on_with_the_same_response(roles, tiny_tokenizer):
    short = draw(roles, tiny_tokenizer, PROMPTS, range(7), tokens=4)
    long = draw(roles, tiny_tokenizer, PROMPTS, range(7), tokens=9)
    assert [response[:4] for response in long] == short


def test_responses_end_their_turn_or_reach_the_limit(roles, tiny_tokenizer):
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(80)]
    responses = draw(roles, tiny_tokenizer, prompts, range(80), tokens=24, batch_size=40)
    ended = [response for response in responses if response[-1] == EOS]
    cut = [response for response in responses if response[-1] != EOS]
    assert ended and cut
    assert all(EOS not in response[:-1] and 1 <= len(response) <= 24 for response in ended)
    assert all(EOS not in response and len(response) == 24 for response in cut)


def test_pad_token_inside_a_response_is_kept(roles, tiny_tokenizer):
    # The pad token is a token that a policy may sample like any other; only the end of turn ends a response.
    prompts = [PROMPTS[0]] * 300
    responses = draw(roles, tiny_tokenizer, prompts, range(300), tokens=8, batch_size=300)
    after_pad = [r[r.index(0) + 1 :] for r in responses if 0 in r[:-1]]
    assert any(any(id != 0 for id in rest) for rest in after_pad)


def test_sampling_leaves_training_mode_and_gradients_as_they_were(roles, tiny_tokenizer):
    for training in (True, False):
        roles.train(training)
        draw(roles, tiny_tokenizer, PROMPTS[:1], [0], tokens=1)
        assert roles.training is training
        assert roles.causal.training is training
    roles.eval()
    assert torch.is_grad_enabled()


def test_sampling_in_training_mode_is_without_dropout(roles, tiny_tokenizer):
    expected = draw(roles, tiny_tokenizer, PROMPTS, range(7))
    layers = [module for module in roles.modules() if isinstance(module, torch.nn.Dropout)]
    for layer in layers:
        layer.p = 0.5
    roles.causal.model.layers[0].self_attn.attention_dropout = 0.5
    roles.train()
    try:
        assert draw(roles, tiny_tokenizer, PROMPTS, range(7)) == expected
    finally:
        roles.eval()
        roles.causal.model.layers[0].self_attn.attention_dropout = 0.0


def test_prompts_do_not_have_the_head_copied_for_each_of_their_rows(roles, tiny_tokenizer):
    """As torch's bf16 product for CPUs does with a tensor that is not contiguous."""
    rollout = Rollout(engine="hf", max_new_tokens=3)
    read, written = [], []
    head = roles.causal.get_output_embeddings()
    with (
        head.register_forward_pre_hook(lambda _, given: read.append(given[0].is_contiguous())),
        head.register_forward_hook(lambda _, given, __: written.append(given[0].is_contiguous())),
    ):
        sample_responses(roles, tiny_tokenizer, rollout, PROMPTS, range(len(PROMPTS)))
    assert read == [False, True, True], "transformers' own slice of the prompts' hidden states"
    assert written == [True] * 3


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_sharing_keeps_the_order_of_prompts(batch_size, roles, tiny_tokenizer):
    rollout = Rollout(max_new_tokens=4, batch_size=batch_size)
    advanced: list[int] = []
    with open_sampler(roles, tiny_tokenizer, ALONE, rollout) as sampler:
        found = sampler.shared("policy", PROMPTS, range(7), advanced.append)
    assert [each.ids for each in found] == draw(roles, tiny_tokenizer, PROMPTS, range(7), tokens=4)
    assert sum(advanced) == 7


def test_decode_drops_special_tokens_and_white_space(tiny_tokenizer):
    ids = tiny_tokenizer("  the dog ", add_special_tokens=False).input_ids
    sampler = Sampler(NOTHING, tiny_tokenizer, ALONE, Rollout(), NOTHING)
    assert sampler.decode([[*ids, EOS], [1, *ids, 0, 0]]) == ["the dog", "the dog"]


# ResponseBatch


def test_lay_out_by_hand():
    batch = response_batch([[5, 6, 7], [8]], [[9], [10, 11]], 0, CPU)
    assert batch.input_ids.tolist() == [[5, 6, 7, 9, 0], [0, 0, 8, 10, 11]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert batch.responses.tolist() == [[9, 0], [10, 11]]
    assert batch.mask.tolist() == [[True, False], [True, True]]
    assert batch.start == 2
    assert {t.dtype for t in (batch.input_ids, batch.attention_mask, batch.responses)} == {torch.int64}
    assert batch.mask.dtype == torch.bool


def test_lay_out_tells_padding_by_mask_not_by_token():
    batch = response_batch([[0, 5]], [[0, 2, 0]], 0, CPU)
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1]]
    assert batch.mask.tolist() == [[True, True, True]]


def test_lay_out_pads_with_the_pad_token():
    batch = response_batch([[5, 6], [8]], [[9], [10, 11]], 3, CPU)
    assert batch.input_ids.tolist() == [[5, 6, 9, 3], [3, 8, 10, 11]]
    assert batch.responses.tolist() == [[9, 3], [10, 11]]


def test_position_start_tells_the_first_response_token():
    batch = response_batch(PROMPTS, RESPONSES, 0, CPU)
    rows = zip(batch.input_ids.tolist(), PROMPTS, RESPONSES, strict=True)
    for row, prompt, response in rows:
        assert row[batch.start] == prompt[-1]
        assert row[batch.start + 1 : batch.start + 1 + len(response)] == response


# What is read off a batch


def naive_logits(roles, role: str, ids: list[int]) -> torch.Tensor:
    """(T, V) logits of one sequence alone, without padding, in float64, by transformers itself."""
    roles.activate(role)
    with torch.no_grad():
        return roles.causal(input_ids=torch.tensor([ids])).logits[0].double()


@pytest.mark.parametrize("role", LANGUAGE_ROLES)
def test_logprobs_and_entropy_equal_those_of_each_sequence_alone(role, roles):
    batch = response_batch(PROMPTS, RESPONSES, 0, CPU)
    with torch.no_grad():
        logprobs, entropy, *_ = response_statistics(roles, role, batch, entropy=True)
    assert logprobs.shape == entropy.shape == batch.mask.shape
    assert logprobs.dtype == entropy.dtype == torch.float32
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        logits = naive_logits(roles, role, prompt + response)
        for t, id in enumerate(response):
            row = logits[len(prompt) + t - 1].tolist()
            log_total = math.log(sum(math.exp(x) for x in row))
            assert logprobs[i, t].item() == pytest.approx(row[id] - log_total, abs=1e-4)
            wanted = -sum(math.exp(x - log_total) * (x - log_total) for x in row)
            assert entropy[i, t].item() == pytest.approx(wanted, abs=1e-4)


def test_entropy_and_logprobs_train_the_policy_alone(roles):
    batch = response_batch(PROMPTS[:2], RESPONSES[:2], 0, CPU)
    logprobs, entropy, *_ = response_statistics(roles, "policy", batch, entropy=True)
    for figure in (logprobs, entropy):
        roles.zero_grad()
        figure.sum().backward(retain_graph=True)
        moved = {
            name.split(".")[-2] for name, p in roles.named_parameters() if p.grad is not None and p.grad.any()
        }
        assert moved == {"policy"}


def naive_values(roles, role: str, ids: list[int]) -> torch.Tensor:
    """(T,) scalars of one sequence alone: its last hidden states times the head's weight, plus its bias."""
    roles.activate(role)
    with torch.no_grad():
        hidden = roles.causal(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
        head = roles.heads[role]
        return hidden.double() @ head.weight[0].double() + head.bias.double()


@pytest.mark.parametrize("role", ["reward", "critic"])
def test_values_are_those_of_each_sequence_alone(role, roles):
    batch = response_batch(PROMPTS, RESPONSES, 0, CPU)
    with torch.no_grad():
        values, scores = state_values(roles, role, batch), sequence_scores(roles, role, batch)
    assert values.shape == (len(PROMPTS), batch.mask.shape[1] + 1)
    assert values.dtype == scores.dtype == torch.float32
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        naive = naive_values(roles, role, prompt + response)[len(prompt) - 1 :].tolist()
        assert values[i, : len(response) + 1].tolist() == pytest.approx(naive, abs=1e-5)
        assert scores[i].item() == pytest.approx(naive[-1], abs=1e-5)
        assert len({round(value, 3) for value in naive}) == len(
            naive
        )  # so the right token was told from others


def test_score_is_read_at_the_last_response_token():
    """A model that says each token's own id: the score is the id of the last one, pad tokens and all."""
    batch = response_batch([[5, 6], [7, 8, 9], [4]], [[11, 12], [13], [0, 14, 0]], 0, CPU)

    def own_id(role, input_ids, attention_mask, position_ids, start):
        return input_ids[:, start:].float()

    assert sequence_scores(own_id, "reward", batch).tolist() == [12.0, 13.0, 0.0]
    assert state_values(own_id, "critic", batch)[0].tolist() == [6.0, 11.0, 12.0, 0.0]


def batches_around_the_first() -> dict[str, ResponseBatch]:
    prompt, response = PROMPTS[0], RESPONSES[0]
    return {
        "longer prompt beside it": response_batch([prompt, [33] * 20], [response, [4]], 0, CPU),
        "longer response beside it": response_batch([prompt, [33]], [response, [4] * 15], 0, CPU),
        "padded with another token": response_batch([prompt, [33] * 9], [response, [4] * 9], 17, CPU),
        "itself beside it": response_batch([prompt, prompt], [response, response], 0, CPU),
    }


@pytest.mark.parametrize("company", batches_around_the_first())
def test_score_and_logprobs_do_not_depend_on_batch_or_padding(company, roles):
    alone, batch = response_batch(PROMPTS[:1], RESPONSES[:1], 0, CPU), batches_around_the_first()[company]
    with torch.no_grad():
        torch.testing.assert_close(
            sequence_scores(roles, "reward", batch)[:1],
            sequence_scores(roles, "reward", alone),
            rtol=1e-5,
            atol=1e-5,
        )
        for found, expected in zip(
            response_statistics(roles, "policy", batch, entropy=True)[:2],
            response_statistics(roles, "policy", alone, entropy=True)[:2],
            strict=True,
        ):
            torch.testing.assert_close(found[:1, : len(RESPONSES[0])], expected, rtol=1e-5, atol=1e-5)


def test_token_after_the_last_has_no_say_in_the_score(roles):
    batch = response_batch(PROMPTS[:2], RESPONSES[:2], 0, CPU)
    assert not batch.mask[1, -1]
    spoilt = batch.input_ids.clone()
    spoilt[1, -1] = 299
    other = ResponseBatch(spoilt, batch.attention_mask, batch.responses, batch.mask, batch.start)
    with torch.no_grad():
        assert torch.equal(sequence_scores(roles, "reward", other), sequence_scores(roles, "reward", batch))


# Temperature, top-k and top-p

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
        found = response_statistics(roles, "policy", batch).logprobs
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        logits = naive_logits(roles, "policy", prompt + response.ids)[len(prompt) - 1 :]
        for t, id in enumerate(response.ids):
            probabilities = warped(logits[t], rollout)
            expected = math.log(probabilities[id])
            assert response.logprobs[t] == pytest.approx(expected, abs=1e-4)
            assert found[i, t].item() == pytest.approx(expected, abs=1e-4)
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
