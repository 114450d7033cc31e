"""What a request may hold: everything else is refused by name, before it reaches a model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from apps.serve.forms import ChatForm, ScoreForm, TextForm, parse
from apps.web.errors import ApiError

TEXT = {"model": "ppo", "prompt": "a"}
CHAT = {"model": "ppo", "messages": [{"role": "user", "content": "a"}]}

REFUSED = [
    (TextForm, b"", "not JSON"),
    (TextForm, b"[1", "not JSON"),
    (TextForm, b"[]", "not a JSON object"),
    (TextForm, b"\xff\xfe{", "not JSON"),
    (TextForm, b"[" * 100_000, "not JSON"),
    (TextForm, b'{"model": "ppo", "prompt": "a", "temperature": NaN}', "NaN is no number"),
    (TextForm, b'{"seed": 1' + b"0" * 5000 + b"}", "not JSON"),
    (TextForm, b'{"model": "ppo", "prompt": "\\ud800"}', "half of a surrogate pair"),
    (ScoreForm, b'{"prompts": ["a"], "completions": ["\\udfff"]}', "half of a surrogate pair"),
    (TextForm, {**TEXT, "foo": 1}, "foo: this server does not know it"),
    (TextForm, {"model": "ppo"}, "prompt: it is missing"),
    (TextForm, {**TEXT, "prompt": [1, 2]}, "prompt.0: "),
    (TextForm, {**TEXT, "prompt": []}, "prompt: "),
    (TextForm, {**TEXT, "echo": True}, "echo: this server has only false"),
    (TextForm, {**TEXT, "best_of": 3}, "best_of: this server has only 1"),
    (TextForm, {**TEXT, "frequency_penalty": 0.5}, "frequency_penalty: this server has only 0"),
    (TextForm, {**TEXT, "temperature": -1}, "temperature: "),
    (TextForm, {**TEXT, "temperature": "1"}, "temperature: "),
    (TextForm, {**TEXT, "top_p": 0}, "top_p: "),
    (TextForm, {**TEXT, "top_k": 2**21}, "top_k: "),
    (TextForm, {**TEXT, "n": 0}, "n: "),
    (TextForm, {**TEXT, "n": True}, "n: "),
    (TextForm, {**TEXT, "max_tokens": 0}, "max_tokens: "),
    (TextForm, {**TEXT, "stop": ""}, "stop"),
    (TextForm, {**TEXT, "stop": ["a"] * 17}, "at most 16 items"),
    (TextForm, {**TEXT, "seed": 2**64}, "seed: "),
    (TextForm, {**TEXT, "stream_options": {"foo": 1}}, "stream_options.foo: this server does not know it"),
    (ChatForm, {**CHAT, "tools": [{"type": "function"}]}, "tools: this server has only []"),
    (ChatForm, {**CHAT, "response_format": {"type": "json_object"}}, "response_format: "),
    (ChatForm, {**CHAT, "messages": []}, "messages: "),
    (ChatForm, {**CHAT, "messages": ["hello"]}, "messages.0: "),
    (ChatForm, {**CHAT, "messages": [{"role": "tool", "content": "a"}]}, "messages.0.role: "),
    (ChatForm, {**CHAT, "messages": [{"role": "user", "content": None}]}, "messages.0.content: "),
    (ChatForm, {**CHAT, "messages": [{"role": "user", "content": "a", "name": "b"}]}, "messages.0.name: "),
    (
        ChatForm,
        {**CHAT, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "should be 'text'",
    ),
    (ChatForm, {**CHAT, "top_logprobs": 21}, "top_logprobs: "),
    (ScoreForm, {"prompts": "a"}, "prompts: "),
    (ScoreForm, {"prompts": ["a"], "completions": [1]}, "completions.0: "),
]


@pytest.mark.parametrize(("form", "body", "message"), REFUSED)
def test_a_request_is_refused_by_name(form, body, message):
    with pytest.raises(ApiError) as refusal:
        parse(form, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert refusal.value.status == 400
    assert message in str(refusal.value)
    assert len(str(refusal.value)) < 400


def test_a_message_may_say_that_it_is_text_as_lm_eval_does():
    message = {"role": "user", "content": "a", "type": "text"}
    assert parse(ChatForm, json.dumps({**CHAT, "messages": [message]}).encode()).messages[0].plain() == {
        "role": "user",
        "content": "a",
    }


def test_conversations_to_score_may_have_what_clients_add():
    turns = [CHAT["messages"][0], {"role": "assistant", "content": "b", "refusal": None, "annotations": []}]
    form = parse(ScoreForm, json.dumps({"messages": [turns, turns]}).encode())
    assert form.messages is not None and len(form.messages) == 2


def test_what_changes_nothing_is_accepted():
    harmless = {
        "user": "me",
        "store": True,
        "metadata": {"a": "b"},
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": None,
        "response_format": {"type": "text"},
        "seed": None,
    }
    assert parse(ChatForm, json.dumps(CHAT | harmless).encode()) == parse(ChatForm, json.dumps(CHAT).encode())


def test_an_earlier_answer_may_come_back_as_the_client_has_it():
    answer: dict[str, Any] = {
        "role": "assistant",
        "content": "b",
        "refusal": None,
        "tool_calls": None,
        "annotations": [],
    }
    turns = [*CHAT["messages"], answer, {"role": "user", "content": [{"type": "text", "text": "c"}]}]
    form = parse(ChatForm, json.dumps({**CHAT, "messages": turns}).encode())
    assert [message.plain() for message in form.messages] == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]


@pytest.mark.parametrize("form", [ChatForm, ScoreForm])
def test_no_depth_is_too_deep_for_a_refusal(form):
    """Each function that goes down a body has its own limit."""
    for lists in range(50, 1500, 10):
        body = b'{"model": "ppo", "messages": ' + b"[" * lists + b"]" * lists + b"}"
        with pytest.raises(ApiError) as refusal:
            parse(form, body)
        assert refusal.value.status == 400
