"""Continuous batching samples the same as every engine, in fewer forwards and the same memory."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Qwen3Config
from transformers.cache_utils import DynamicLayer

from configs.schema import Rollout
from stages.distributed.ranks import Ranks
from stages.sampling.decoding import Response
from stages.sampling.decoding_batch import SPARE, DecodingBatch, PreallocatedLayer, supports_joining
from stages.sampling.sampler import Sampler, open_sampler
from tests.support.roles import CPU, ppo_roles
from tests.support.sampling import ALONE, merged_copy_of, sample_responses

LENGTHS = (3, 17, 1, 9, 30, 2, 5)
COUNT = 40
VARIED = {"top_k": 4}  # makes the end of a turn likely


@pytest.fixture(scope="module")
def roles(adapters):
    return ppo_roles(adapters).eval()


@pytest.fixture(scope="module")
def tokenizer(roles, tiny_tokenizer):
    """The tiny tokenizer with the commonest token as end of turn, so that responses differ in length."""
    rollout = Rollout(engine="merged", batch_size=COUNT, max_new_tokens=20, **VARIED)
    responses = sample_responses(roles, tiny_tokenizer, rollout, PROMPTS, SEEDS)
    counts = Counter(id for response in responses for id in response.ids)
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token_id = counts.most_common(1)[0][0]
    return tokenizer


def prompts_of_many_lengths() -> list[list[int]]:
    """COUNT prompts. Every fourth repeats an earlier one."""
    random = torch.Generator().manual_seed(0)
    prompts: list[list[int]] = []
    for i in range(COUNT):
        new = torch.randint(3, 384, (LENGTHS[i % len(LENGTHS)],), generator=random).tolist()
        prompts.append(prompts[i // 2] if i % 4 == 3 else new)
    return prompts


PROMPTS, SEEDS = prompts_of_many_lengths(), [7 * i + 1 for i in range(COUNT)]


def assert_same(responses: list[Response], expected_responses: list[Response]) -> None:
    assert [response.ids for response in responses] == [response.ids for response in expected_responses]
    for actual, expected in zip(responses, expected_responses, strict=True):
        assert actual.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
        assert [response.tolist() for response in actual.support] == [
            response.tolist() for response in expected.support
        ]


Forwards = list[tuple[int, int, int]]


@contextmanager
def watched_sampler(roles, tokenizer, engine: str, **rollout: Any) -> Iterator[tuple[Sampler, Forwards]]:
    """A sampler, and (rows, new tokens of each, tokens in the mask) of each forward of its copy."""
    forwards: Forwards = []

    def record_forward(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        forwards.append((*kwargs["input_ids"].shape, kwargs["attention_mask"].shape[1]))

    with open_sampler(roles, tokenizer, ALONE, Rollout(engine=engine, **rollout)) as sampler:
        copy = merged_copy_of(sampler)
        assert copy is not None
        copy.model.register_forward_pre_hook(record_forward, with_kwargs=True)
        yield sampler, forwards


@pytest.mark.parametrize("engine", ["hf", "merged"])
@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 1, "max_new_tokens": 5, **VARIED},
        {"batch_size": 3, "max_new_tokens": 1},
        {"batch_size": 4, "max_new_tokens": 60},
        {"batch_size": 4, "max_new_tokens": 60, **VARIED},
        {"batch_size": 9, "max_new_tokens": 25, "temperature": 1.5, "top_k": 20, "top_p": 0.8},
        {"batch_size": 64, "max_new_tokens": 40},
    ],
    ids=str,
)
def test_it_samples_what_the_other_engines_sample(engine, options, roles, tokenizer) -> None:
    continuous = sample_responses(roles, tokenizer, Rollout(engine="continuous", **options), PROMPTS, SEEDS)
    other = Rollout(engine=engine, **options | {"batch_size": 8})
    assert_same(continuous, sample_responses(roles, tokenizer, other, PROMPTS, SEEDS))
    assert len({len(response.ids) for response in continuous}) > 1 or options["max_new_tokens"] == 1


def test_responses_that_end_at_once_make_room(roles, tokenizer) -> None:
    """More responses than rows end at their first token, among others."""
    one_token = Rollout(engine="merged", max_new_tokens=1, batch_size=500)
    first = sample_responses(roles, tokenizer, one_token, [[5]] * 2000, range(2000))
    ended = [seed for seed, response in enumerate(first) if response.ids == [tokenizer.eos_token_id]][:5]
    assert len(ended) == 5
    seeds = [*ended, 0, 1, *ended]
    options: dict[str, Any] = {"max_new_tokens": 20, "batch_size": 2}
    continuous, hf = (Rollout(engine=engine, **options) for engine in ("continuous", "hf"))
    responses = sample_responses(roles, tokenizer, continuous, [[5]] * 12, seeds)
    assert [len(response.ids) for response in responses].count(1) >= 10
    assert_same(responses, sample_responses(roles, tokenizer, hf, [[5]] * 12, seeds))


def test_no_prompts_no_responses(roles, tokenizer) -> None:
    assert sample_responses(roles, tokenizer, Rollout(engine="continuous"), [], []) == []


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_rows_in_flight_are_at_most_the_batch_size(batch_size, roles, tokenizer, monkeypatch) -> None:
    sizes: list[int] = []
    extend = DecodingBatch.decode_step

    def record_rows(self: DecodingBatch, tokens: torch.Tensor) -> None:
        sizes.append(len(self.mask))
        extend(self, tokens)

    monkeypatch.setattr(DecodingBatch, "decode_step", record_rows)
    with watched_sampler(roles, tokenizer, "continuous", batch_size=batch_size, max_new_tokens=20) as (
        sampler,
        forwards,
    ):
        sampler.respond("policy", PROMPTS, SEEDS)
    assert max(sizes) == max(rows for rows, *_ in forwards) == batch_size


def test_it_takes_fewer_forwards_over_the_same_rows(roles, tokenizer) -> None:
    options = {"batch_size": 8, "max_new_tokens": 60, **VARIED}
    steps = {}
    for engine in ("merged", "continuous"):
        with watched_sampler(roles, tokenizer, engine, **options) as (sampler, forwards):
            responses = sampler.respond("policy", PROMPTS, SEEDS)
        steps[engine] = len(forwards)
        # A forward for each token but the last of a response, which needs none.
        assert sum(rows for rows, new, past in forwards if new < past) == sum(
            len(response.ids) - 1 for response in responses
        )
    assert steps["continuous"] < steps["merged"]


def test_the_cache_is_as_wide_as_the_longest_sequence_in_flight(roles, tokenizer) -> None:
    prompts = [[10 + i % 5] * 4 for i in range(200)]
    with watched_sampler(roles, tokenizer, "continuous", batch_size=6, max_new_tokens=30) as (
        sampler,
        forwards,
    ):
        sampler.respond("policy", prompts, range(200))
    assert len(forwards) > 5 * 34
    assert max(width for *_, width in forwards) < 34 + 30


def test_the_cache_is_copied_once_for_many_tokens() -> None:
    """The cache equals that of transformers, also after rows have left it."""
    preallocated, dynamic, keys_by_step = PreallocatedLayer(), DynamicLayer(), list[torch.Tensor]()
    for step in range(4 * SPARE):
        shape = (2 if step > SPARE else 3, 2, 5 if step in (0, SPARE // 2) else 1, 4)
        new = torch.rand(shape), torch.rand(shape)
        for actual, expected in zip(preallocated.update(*new), dynamic.update(*new), strict=True):
            assert torch.equal(actual, expected)
        keys_by_step.append(preallocated.keys)
        if step == SPARE:
            preallocated.batch_select_indices(torch.tensor([2, 0]))
            dynamic.batch_select_indices(torch.tensor([2, 0]))
    # Copied at the start, after every SPARE tokens, and when rows leave.
    assert len({keys.data_ptr() for keys in keys_by_step}) == 5


def test_a_prompt_asked_for_several_responses_is_read_once(roles, tokenizer) -> None:
    with watched_sampler(roles, tokenizer, "continuous", batch_size=8, max_new_tokens=1) as (
        sampler,
        forwards,
    ):
        sampler.respond("policy", [[5, 6, 7]] * 12 + [[8, 9, 10]] * 4, range(16))
    assert [rows for rows, *_ in forwards] == [1, 2]


def test_prompts_wait_for_a_quarter_of_the_rows(roles, tokenizer) -> None:
    """Reading prompts takes a separate forward, so that waiting saves forwards."""
    with watched_sampler(roles, tokenizer, "continuous", batch_size=16, max_new_tokens=60, **VARIED) as (
        sampler,
        forwards,
    ):
        sampler.respond("policy", [[i] for i in range(3, 163)], range(160))
    rows_read = [rows for rows, new, past in forwards if new == past]
    assert rows_read[0] == 16 and sum(rows_read) == 160
    assert all(rows >= 4 for rows in rows_read[:-1])


def test_auto_is_continuous_where_prompts_wait(roles, tokenizer) -> None:
    counts = {}
    for engine in ("auto", "continuous", "merged"):
        with watched_sampler(roles, tokenizer, engine, batch_size=8, max_new_tokens=60, **VARIED) as (
            sampler,
            forwards,
        ):
            sampler.respond_on_all_ranks("policy", PROMPTS, SEEDS)
        counts[engine] = len(forwards)
    assert counts["auto"] == counts["continuous"] < counts["merged"]


def test_every_response_is_told_as_it_ends(roles, tokenizer) -> None:
    advanced: list[int] = []
    with watched_sampler(roles, tokenizer, "continuous", batch_size=4, max_new_tokens=8) as (
        sampler,
        forwards,
    ):
        sampler.respond_on_all_ranks(
            "policy", PROMPTS, SEEDS, lambda ended: advanced.extend([len(forwards)] * ended)
        )
    assert len(advanced) == COUNT
    assert advanced == sorted(advanced) and len(set(advanced)) > 5


class OneOfTwo(Ranks):
    """One of two ranks without the other: a step that waits for it would raise."""

    def sum(self, values: Mapping[str, Any]) -> dict[str, float]:
        return dict(values)

    def gather(self, items: list[Any]) -> list[Any]:
        return items


@pytest.mark.parametrize("engine", ["merged", "continuous"])
def test_a_rank_samples_its_share_without_the_other(engine, roles, tokenizer) -> None:
    rollout = Rollout(engine=engine, batch_size=4, max_new_tokens=20)
    all_responses = sample_responses(roles, tokenizer, rollout, PROMPTS, SEEDS)
    for rank in (0, 1):
        with open_sampler(roles, tokenizer, OneOfTwo(rank, 2, CPU), rollout) as sampler:
            share = sampler.respond_on_all_ranks("policy", PROMPTS, SEEDS)
        assert_same(share, all_responses[rank::2])


def test_caches_join_where_every_layer_keeps_all_tokens() -> None:
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "num_hidden_layers": 2}
    assert supports_joining(LlamaConfig(num_hidden_layers=2))
    assert supports_joining(Qwen3Config(num_hidden_layers=2))
    assert not supports_joining(Qwen3Config(**window))
    assert not supports_joining(MistralConfig(num_hidden_layers=2, sliding_window=8))
