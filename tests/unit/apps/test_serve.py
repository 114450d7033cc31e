"""The server's own paths, limits and refusals."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest
import requests

from apps.answers.decoder import Decoder, Room
from apps.answers.loading import load
from apps.answers.scores import Scorer
from apps.serve.limits import Limits
from apps.serve.serve import checked_key
from apps.trained_run import open_run
from apps.web.server import listening_socket
from configs.errors import UserError
from configs.schema import Reward
from data.batches.tokenize import Prompt
from stages.distributed.ranks import Ranks
from stages.feedback.reward_endpoint import Endpoint
from stages.feedback.reward_model import RewardModel
from stages.sampling.decoding import Response
from stages.sampling.decoding_batch import DecodingBatch
from tests.support.random_run import without_stage
from tests.support.roles import CPU
from tests.support.waiting import SECONDS, until
from tests.unit.apps.server import serving

KEY = "a-key-of-tests"
TEXT = {"model": "sft", "prompt": "My cat is sick.", "max_tokens": 4}
EXCHANGE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
PROMPTS = ["My cat is sick.", "I lost my red hat."]
ANSWERS = ["Oh no, I hope she feels better", ""]


def expected_scores(run, loaded, ended=True):
    """The reward model's scores by the code that PPO uses, on tokens that the template writes."""
    tokenizer = loaded.tokenizer
    prompts, responses = [], []
    for text, answer in zip(PROMPTS, ANSWERS, strict=True):
        turn = [{"role": "user", "content": text}]
        rendered = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        prompts.append(Prompt(text, text, tokenizer(rendered, add_special_tokens=False)["input_ids"]))
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        responses.append(Response([*ids, tokenizer.eos_token_id] if ended else ids))
    model = RewardModel(loaded.models, Ranks(0, 1, CPU), run.config.data)
    return model.score_on_all_ranks(prompts, responses, len(prompts))


def test_another_run_takes_the_scores_as_its_reward(server, run, loaded):
    endpoint = Endpoint(Reward(source=f"{server.url}/v1/score"))
    assert endpoint(PROMPTS, ANSWERS) == pytest.approx(expected_scores(run, loaded), abs=1e-4)


def test_scores_of_conversations(server, run, loaded):
    conversations = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        for text, answer in zip(PROMPTS, ANSWERS, strict=True)
    ]
    scores = server.post("/v1/score", {"messages": conversations}).json()["rewards"]
    assert scores == pytest.approx(expected_scores(run, loaded), abs=1e-4)
    one = server.post("/v1/score", {"messages": conversations[0], "ended": [False]}).json()["rewards"]
    assert one == pytest.approx(expected_scores(run, loaded, ended=False)[:1], abs=1e-4)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "Give prompts and completions, or messages."),
        ({"prompts": ["a"], "completions": []}, "give one of each"),
        ({"messages": [{"role": "user", "content": "a"}]}, "must be the assistant's"),
        ({"prompts": ["a"], "completions": ["b"], "ended": []}, "give one of each"),
        ({"prompts": [""], "completions": ["b"]}, "the prompt is empty"),
        ({"prompts": ["a"], "completions": ["b"], "messages": [EXCHANGE]}, "This request has both"),
    ],
)
def test_scores_that_cannot_be(server, body, message):
    response = server.post("/v1/score", body)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_scores_of_another_model_are_refused(server):
    body = {"prompts": ["a"], "completions": ["b"]}
    assert server.post("/v1/score", body | {"model": "rm"}).status_code == 200
    other = server.post("/v1/score", body | {"model": "ppo"})
    assert other.status_code == 404 and "there are rm" in other.json()["error"]["message"]


def test_scores_that_take_too_long_are_given_up(run, loaded, monkeypatch):
    monkeypatch.setattr(Scorer, "score", lambda self, pairs: time.sleep(2))
    with serving(run, loaded, limits=Limits(seconds=0.2)) as server:
        response = server.post("/v1/score", {"prompts": ["a"], "completions": ["b"]})
        assert (
            response.status_code == 504 and "longer than 0.2 seconds" in response.json()["error"]["message"]
        )


def test_the_log_says_why_a_request_failed(run, loaded, monkeypatch, caplog):
    def fail(self, pairs):
        raise RuntimeError("the reward model broke")

    monkeypatch.setattr(Scorer, "score", fail)
    with serving(run, loaded) as server:
        assert server.post("/v1/score", {"prompts": ["a"], "completions": ["b"]}).status_code == 500
    assert "POST /v1/score failed" in caplog.text and "the reward model broke" in caplog.text


def test_a_transcript_is_a_conversation_without_an_empty_turn(server):
    body = {"model": "sft", "max_tokens": 1, "prompt": "\n\nHuman: Hi\n\nAssistant:"}
    chat = {"model": "sft", "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}
    tokens = [
        server.post(path, one).json()["usage"]["prompt_tokens"]
        for path, one in (("/v1/completions", body), ("/v1/chat/completions", chat))
    ]
    assert tokens[0] == tokens[1]
    cut = server.post("/v1/completions", body | {"prompt": "\n\nHuman: Hi\n\nAssistant: Hello"})
    assert cut.status_code == 400 and "roles out of order" in cut.json()["error"]["message"]


def test_a_run_that_continues_texts(text_run_dir):
    run = open_run(text_run_dir)
    loaded = load(run, ["ppo"], score=True)
    with serving(run, loaded) as server:
        about = server.get("/v1/run").json()
        assert about["continues_text"] and about["sampling"] == {
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": None,
        }
        turn = {"role": "user", "content": "Once upon a"}
        one = server.post("/v1/completions", {"model": "ppo", "prompt": "Once upon a", "seed": 1}).json()
        chat = server.post("/v1/chat/completions", {"model": "ppo", "messages": [turn], "seed": 1}).json()
        assert one["choices"][0]["text"] == chat["choices"][0]["message"]["content"]
        assert one["usage"]["prompt_tokens"] == len(loaded.tokenizer("Once upon a")["input_ids"])
        turns = [turn, {"role": "assistant", "content": "time"}, turn]
        several = server.post("/v1/chat/completions", {"model": "ppo", "messages": turns})
        assert several.status_code == 400 and "continue a text" in several.json()["error"]["message"]
        # What PPO sends is stripped, so the blank between text and continuation is put back.
        glued = {"prompts": ["Once upon a"], "completions": ["time"]}
        whole = {"messages": [turn, {"role": "assistant", "content": " time"}]}
        assert server.post("/v1/score", glued).json() == server.post("/v1/score", whole).json()


def test_special_tokens_in_a_prompt_are_text(server, loaded):
    end = loaded.tokenizer.eos_token
    plain = server.post("/v1/completions", {**TEXT, "prompt": "ab"}).json()["usage"]["prompt_tokens"]
    special = server.post("/v1/completions", {**TEXT, "prompt": f"a{end}b"}).json()["usage"]["prompt_tokens"]
    assert special >= plain + len(end) // 2


def test_without_a_reward_model_there_are_no_scores(run_dir, tmp_path, loaded):
    run = open_run(without_stage(run_dir, "rm", tmp_path / "run"))
    with serving(run, load(run, ["sft"], score=True)) as server:
        assert server.get("/v1/run").json()["scores"] is False
        assert server.post("/v1/score", {"prompts": [], "completions": []}).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/score", 405),
        ("GET", "/page/x", 404),
    ],
)
def test_paths_that_are_not_there(server, method, path, status):
    response = requests.request(method, server.url + path, timeout=30)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_web_pages_of_others_are_refused(server):
    assert server.get("/v1/models", Host="evil.example").status_code == 403
    form = {"Content-Type": "text/plain"}
    assert server.post("/v1/completions", None, data=json.dumps(TEXT), headers=form).status_code == 415


POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HOSTILE = [
    b"\0\0\0",
    b"GET /v1/models HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
    POST + b"Content-Length: -1\r\n\r\n",
    POST + b"Content-Length: 100\r\n\r\n{",
]


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_a_broken_request_ends_alone(server, content):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(100)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert server.post("/v1/completions", TEXT).status_code == 200


@pytest.mark.parametrize(("part", "method"), [(Decoder, "step"), (DecodingBatch, "prefill")])
def test_a_model_that_fails_fails_one_request(server, monkeypatch, caplog, part, method):
    with monkeypatch.context() as patch:
        patch.setattr(part, method, lambda self, *prompts: 1 / 0)
        response = server.post("/v1/completions", TEXT)
    assert response.status_code == 500 and "ZeroDivisionError" not in response.text
    assert "ZeroDivisionError" in caplog.text
    assert server.post("/v1/completions", TEXT).status_code == 200


@pytest.fixture(scope="module")
def small(run, loaded):
    """A server with a key and small limits."""
    limits = Limits(body_bytes=2000, body_seconds=0.5, choices=2, queue=1, seconds=3, pairs=3)
    with serving(run, loaded, KEY, limits, Room(rows=1)) as server:
        yield server


def keyed(server, path, body, **options):
    return server.post(path, body, headers={"Authorization": f"Bearer {KEY}"}, **options)


def test_a_key_is_needed_but_for_the_page(small):
    assert small.get("/").status_code == small.get("/page/page.js").status_code == 200
    assert "requestSubmit" in small.get("/page/page.js").text
    for headers in (
        {},
        {"Authorization": "Bearer no"},
        {"Authorization": KEY},
        {"Authorization": "Bearer é"},
    ):
        response = requests.get(
            small.url + "/v1/models",
            headers={name: value.encode() for name, value in headers.items()},
            timeout=30,
        )
        assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"
    assert keyed(small, "/v1/completions", TEXT).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/completions", {**TEXT, "n": 3}, 400),
        ("/v1/completions", {**TEXT, "prompt": "a" * 2000}, 413),
        ("/v1/score", {"prompts": ["a"] * 4, "completions": ["b"] * 4}, 400),
        ("/v1/completions", {**TEXT, "max_tokens": 10**6}, 400),
    ],
)
def test_limits(small, path, body, status):
    assert keyed(small, path, body).status_code == status


def test_a_body_that_never_arrives_is_given_up(small):
    host, port = small.url.removeprefix("http://").split(":")
    head = (
        f"POST /v1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_a_full_queue_is_429_and_a_long_answer_504(small, monkeypatch):
    """The one row is taken, the one place to wait, too."""
    step = Decoder.step

    def slow(self):
        time.sleep(0.05)
        return step(self)

    monkeypatch.setattr(Decoder, "step", slow)
    endless = {**TEXT, "model": "base", "max_tokens": 400}
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(keyed(small, "/v1/completions", endless).status_code))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    until(lambda: small.get("/health").json()["waiting"] == 1)
    full = keyed(small, "/v1/completions", TEXT)
    assert (full.status_code, full.headers["Retry-After"]) == (429, "1")
    for thread in threads:
        thread.join()
    assert set(statuses) <= {200, 504} and 504 in statuses
    until(lambda: small.get("/health").json()["running"] == 0)


def test_requests_in_progress_end_with_the_server(run, loaded):
    with serving(run, loaded, room=Room(rows=1)) as server:
        body = {**TEXT, "model": "base", "max_tokens": 480, "n": 8, "stream": True}
        response = server.post("/v1/completions", body, stream=True)
        lines = response.iter_lines()
        assert next(lines).startswith(b"data: ")
    events = [line for line in lines if line.startswith(b"data: ")]
    assert json.loads(events[-1].removeprefix(b"data: "))["error"]["code"] == "shutting_down"


def test_other_machines_need_a_key():
    assert (
        checked_key("127.0.0.1", None) is checked_key("::1", None) is checked_key("localhost", None) is None
    )
    assert checked_key("0.0.0.0", f"{KEY}\n") == KEY
    for host, key in (("0.0.0.0", None), ("example.org", None), ("127.0.0.1", ""), ("127.0.0.1", "a b")):
        with pytest.raises(UserError, match="TRISTAGE_API_KEY"):
            checked_key(host, key)


def test_an_address_is_taken_before_anybody_loads_a_model():
    taken = pytest.raises(UserError, match="cannot serve there: Address already in use")
    with listening_socket("127.0.0.1", 0) as first, taken:
        listening_socket(*first.getsockname())


def test_a_client_that_comes_before_the_models_waits_for_its_answer(run, loaded):
    with listening_socket("127.0.0.1", 0) as listener:
        early = socket.create_connection(listener.getsockname(), timeout=SECONDS)
        early.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with serving(run, loaded, listener=listener), early:
            assert early.recv(100).startswith(b"HTTP/1.1 200")
