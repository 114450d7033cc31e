"""The real client of OpenAI against the server, on the tiny model."""

from __future__ import annotations

import asyncio

import openai
import pytest

from apps.answers.answer import Order
from apps.answers.decoder import Decoder
from apps.answers.prompts import Prompts
from apps.answers.sampling import Sampling
from tests.support.waiting import until

MESSAGES = [{"role": "user", "content": "My cat is sick."}]


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def alone(run, loaded, policy, seed, text=MESSAGES[0]["content"], most=12):
    """What the policy answers, decoded by itself without a server."""
    prompt_ids = Prompts(run, loaded).of_text(text)
    decoder = Decoder(loaded)
    sampling = Sampling.of_run(run.config.ppo.rollout)
    answer = decoder.answer(Order(loaded.roles[policy], prompt_ids, sampling, seed, most))
    decoder.add(answer)
    while decoder.step():
        pass
    return answer


def test_models_are_the_policies(client):
    assert [model.id for model in client.models.list()] == ["base", "sft", "ppo"]
    assert client.models.retrieve("sft").id == "sft"
    with pytest.raises(openai.NotFoundError, match="there is no 'gpt'"):
        client.models.retrieve("gpt")


def test_chat(client, run, loaded):
    expected = alone(run, loaded, "sft", 3)
    response = client.chat.completions.create(model="sft", messages=MESSAGES, seed=3, user="me")
    (choice,) = response.choices
    assert choice.message.content == expected.text
    assert choice.finish_reason == expected.finish
    assert response.usage.prompt_tokens == len(expected.order.prompt_ids)
    assert response.usage.completion_tokens == len(expected.tokens)


def test_a_stream_has_the_same_text_and_the_usage(client, run, loaded):
    expected = alone(run, loaded, "ppo", 4)
    stream = client.chat.completions.create(
        model="ppo", messages=MESSAGES, seed=4, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == expected.text
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == expected.finish
    assert last.choices == [] and last.usage.completion_tokens == len(expected.tokens)


def test_completions_of_several_prompts(client, run, loaded):
    texts = ["I lost my red hat.", "My cat is sick."]
    response = client.completions.create(model="base", prompt=texts, n=2, seed=7, max_tokens=5)
    assert [choice.index for choice in response.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in response.choices] == [
        alone(run, loaded, "base", seed, text, most=5).text for text in texts for seed in (7, 8)
    ]


def test_several_turns(client):
    turns = [{"role": "system", "content": "Be kind."}, *MESSAGES, {"role": "assistant", "content": "Oh."}]
    response = client.chat.completions.create(
        model="ppo", messages=[*turns, {"role": "user", "content": "Yes."}], max_completion_tokens=2
    )
    assert response.choices[0].finish_reason in ("stop", "length")
    with pytest.raises(openai.BadRequestError, match="must alternate"):
        client.chat.completions.create(model="ppo", messages=turns)


def test_logprobs(client, run, loaded):
    expected = [token for token in alone(run, loaded, "sft", 3).tokens if token.id != 2]
    chat = client.chat.completions.create(
        model="sft", messages=MESSAGES, seed=3, logprobs=True, top_logprobs=2
    )
    content = chat.choices[0].logprobs.content
    assert [token.logprob for token in content] == pytest.approx([t.logprob for t in expected], abs=1e-4)
    assert all(len(token.top_logprobs) == 2 for token in content)
    text = client.completions.create(model="sft", prompt=MESSAGES[0]["content"], seed=3, logprobs=1)
    logprobs = text.choices[0].logprobs
    assert logprobs.token_logprobs == pytest.approx([t.logprob for t in expected], abs=1e-4)
    assert logprobs.tokens == [token.token for token in content]
    assert logprobs.text_offset[0] == 0 and logprobs.text_offset == sorted(logprobs.text_offset)


def test_a_stop_string_ends_an_answer(client, run, loaded):
    text = alone(run, loaded, "base", 5).text
    stop = text[4:6]
    response = client.completions.create(model="base", prompt=MESSAGES[0]["content"], seed=5, stop=stop)
    assert response.choices[0].text == text[: text.index(stop)]
    assert response.choices[0].finish_reason == "stop"


def test_64_requests_at_a_time_get_what_each_gets_alone(server, run, loaded):
    async def ask(client, number):
        policy = ["base", "sft", "ppo"][number % 3]
        response = await client.chat.completions.create(model=policy, messages=MESSAGES, seed=number)
        return policy, response.choices[0].message.content

    async def ask_all():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(64)))

    for number, (policy, text) in enumerate(asyncio.run(ask_all())):
        assert text == alone(run, loaded, policy, number).text


def test_streams_that_are_closed_free_their_rows(client, server):
    for _ in range(5):
        stream = client.chat.completions.create(
            model="base", messages=MESSAGES, stream=True, max_tokens=400, n=4, logprobs=True
        )
        next(iter(stream))
        stream.close()
    until(lambda: server.get("/health").json() == {"status": "ok", "running": 0, "waiting": 0})


def test_errors_are_the_client_s_own(client):
    with pytest.raises(openai.NotFoundError, match="there is no 'gpt'; there are base, sft, ppo"):
        client.chat.completions.create(model="gpt", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="presence_penalty: this server has only 0") as refusal:
        client.chat.completions.create(model="sft", messages=MESSAGES, presence_penalty=1)
    assert refusal.value.param == "presence_penalty"
    with pytest.raises(openai.BadRequestError, match="window of 512") as refusal:
        client.completions.create(model="sft", prompt="cat " * 2000)
    assert refusal.value.code == "context_length_exceeded"
