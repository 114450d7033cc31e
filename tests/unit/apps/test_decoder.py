"""Answers of several policies, decoded together: each is what it would be alone."""

from __future__ import annotations

import pytest

from apps.answers.answer import Order
from apps.answers.decoder import Decoder, Room
from apps.answers.sampling import Sampling
from configs.schema import Rollout
from stages.models.roles import Roles
from stages.sampling.decoding_batch import DecodingBatch
from stages.sampling.sampler import open_sampler
from tests.support.sampling import ALONE, PROMPTS

PLAIN = Sampling(1.0)
SETTINGS = [PLAIN, Sampling(0.7, 0.9), Sampling(0.0), Sampling(1.3, top_k=5), PLAIN, Sampling(0.7, 0.9)]


def orders(loaded, count=24, **changes):
    """Orders of each policy in turn, with other prompts, lengths and settings each."""
    roles = list(loaded.roles.values())
    return [
        Order(
            roles[number % len(roles)],
            PROMPTS[number % len(PROMPTS)],
            **({"sampling": SETTINGS[number % len(SETTINGS)]} | changes),
            seed=number,
            max_new_tokens=3 + number % 11,
            top_logprobs=number % 3,
        )
        for number in range(count)
    ]


def decoded(loaded, given, room=None):
    decoder = Decoder(loaded, room)
    answers = [decoder.answer(order) for order in given]
    for answer in answers:
        decoder.add(answer)
    while decoder.step():
        pass
    return answers


def ids(answers):
    return [[token.id for token in answer.tokens] for answer in answers]


@pytest.mark.parametrize("rows", [1, 3, 32])
def test_an_answer_depends_on_no_other_answer(loaded, rows):
    given = orders(loaded)
    alone = [decoded(loaded, [order])[0] for order in given]
    together = decoded(loaded, given, Room(rows=rows))
    assert ids(together) == ids(alone)
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    for answer, expected in zip(together, alone, strict=True):
        logprobs = [token.logprob for token in answer.tokens]
        assert logprobs == pytest.approx([token.logprob for token in expected.tokens], abs=1e-4)


def test_policies_that_cannot_share_a_batch_take_turns(loaded, monkeypatch):
    given = orders(loaded)
    expected = ids(decoded(loaded, given))
    monkeypatch.setattr(Roles, "can_mix", lambda self, roles: False)
    assert ids(decoded(loaded, given)) == expected
    monkeypatch.setattr("apps.answers.decoder.supports_joining", lambda config: False)
    assert ids(decoded(loaded, given, Room(rows=4))) == expected


@pytest.mark.parametrize("sampling", [PLAIN, Sampling(0.7, 0.9), Sampling(1.3, top_k=5)])
def test_an_answer_is_the_rollout_of_its_seed(loaded, sampling):
    """Training's own engine draws the same tokens, with the same log-probabilities."""
    for name in ("sft", "base"):
        given = [Order(loaded.roles[name], prompt, sampling, seed, 9) for seed, prompt in enumerate(PROMPTS)]
        rollout = Rollout(
            engine="hf",
            max_new_tokens=9,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
        )
        with open_sampler(loaded.base, loaded.tokenizer, ALONE, rollout) as sampler:
            responses = sampler.respond(loaded.roles[name], PROMPTS, range(len(PROMPTS)))
        answers = decoded(loaded, given)
        assert ids(answers) == [response.ids for response in responses]
        for answer, response in zip(answers, responses, strict=True):
            logprobs = [token.logprob for token in answer.tokens]
            assert logprobs == pytest.approx(response.logprobs, abs=1e-4)


def test_policies_differ(loaded):
    given = [Order(role, PROMPTS[0], PLAIN, 1, 12) for role in loaded.roles.values()]
    assert len(set(map(tuple, ids(decoded(loaded, given))))) == 3


def test_greedy_takes_the_likeliest_token(loaded):
    (answer,) = decoded(loaded, [Order(loaded.roles["sft"], PROMPTS[0], Sampling(0), 5, 8, top_logprobs=3)])
    for token in answer.tokens:
        assert token.top[0] == (token.id, pytest.approx(token.logprob))
        assert [logprob for _, logprob in token.top] == sorted((each for _, each in token.top), reverse=True)


def test_what_was_excluded_is_not_among_the_likeliest(loaded):
    order = Order(loaded.roles["sft"], PROMPTS[0], Sampling(1, top_k=2), 5, 8, top_logprobs=5)
    (answer,) = decoded(loaded, [order])
    assert {len(token.top) for token in answer.tokens} == {2}


def test_a_cancelled_answer_frees_its_row(loaded):
    decoder = Decoder(loaded, Room(rows=2))
    answers = [decoder.answer(order) for order in orders(loaded, 4, sampling=PLAIN)]
    for answer in answers:
        decoder.add(answer)
    decoder.step()
    assert (decoder.running, decoder.waiting) == (2, 2)
    for answer in answers[:3]:
        answer.cancelled = True
    decoder.step()
    assert decoder.waiting == 1
    while decoder.step():
        pass
    assert [answer.finish is not None for answer in answers] == [False, False, False, True]
    assert ids(answers[3:]) == ids(decoded(loaded, [answers[3].order]))


def test_the_cache_has_a_limit_but_any_answer_runs(loaded):
    decoder = Decoder(loaded, Room(rows=8, cache_tokens=40))
    for order in orders(loaded, 8, sampling=PLAIN):
        decoder.add(decoder.answer(order))
    most = 0
    while decoder.step():
        most = max(most, decoder.running)
    assert 1 <= most <= 5  # 40 tokens, of rows of 8 or more


def test_answers_whose_prompts_cannot_be_read_are_not_lost(loaded, monkeypatch):
    """The caller tells whoever waits for them. One policy's prompts are read before the other's."""
    decoder = Decoder(loaded)
    answers = [decoder.answer(order) for order in orders(loaded, 6)]
    for answer in answers:
        decoder.add(answer)
    monkeypatch.setattr(DecodingBatch, "prefill", lambda self, prompts: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        decoder.step()
    assert {*map(id, decoder.clear())} == {*map(id, answers)}
