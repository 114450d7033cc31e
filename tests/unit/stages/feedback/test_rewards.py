"""Terms of the reward: functions, a real HTTP endpoint that fails at times, and the shaping of their sum."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import ModuleType

import numpy as np
import pytest
import torch

from configs.errors import UserError
from configs.schema import Ppo, Reward
from stages.feedback.rewards import Rewards, RewardShaper
from stages.training.checkpoint import State

PROMPTS, RESPONSES = ["a", "b"], ["short", "much longer"]


class Service:
    """An endpoint whose first answers are `failures`. It records its requests."""

    def __init__(self) -> None:
        self.failures: list[int] = []
        self.answer: object = {"rewards": [1.0, 2.0]}
        self.requests: list[dict] = []
        self.keys: list[str | None] = []
        self.delay = 0.0  # seconds
        self.redirect = ""  # to this URL
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                service.requests.append(json.loads(body))
                service.keys.append(self.headers["Authorization"])
                time.sleep(service.delay)
                text = json.dumps(service.answer).encode()
                if service.redirect:
                    self.send_response(307)
                    self.send_header("Location", service.redirect)
                else:
                    self.send_response(service.failures.pop(0) if service.failures else 200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/score"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.server.shutdown()
    service.server.server_close()


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An importable module `my_rewards`."""
    module = ModuleType("my_rewards")
    monkeypatch.setitem(sys.modules, "my_rewards", module)
    vars(module)["length"] = lambda prompts, completions: [len(text) for text in completions]
    return module


def test_terms_are_added_up_by_weight(module: ModuleType, service: Service) -> None:
    terms = [Reward(), Reward(source="my_rewards:length", weight=0.5), Reward(source=service.url, weight=-1)]
    rewards = Rewards(terms)
    actual = rewards(PROMPTS, RESPONSES)
    host = service.url.split("/")[2]
    assert actual == {"length": [5.0, 11.0], host: [1.0, 2.0]}
    assert service.requests == [{"prompts": PROMPTS, "completions": RESPONSES}]
    assert rewards.uses_reward_model
    values = {"rm": torch.tensor([3.0, 0.0]), "length": torch.tensor([5.0, 2.0])}
    values[host] = torch.tensor([1.0, 4.0])
    assert rewards.total(values).tolist() == [3.0 + 2.5 - 1.0, 1.0 - 4.0]


def test_names() -> None:
    assert Reward().label == "rm"
    assert Reward(source="a.b:polite").label == "polite"
    assert Reward(source="https://scores.example/v1").label == "scores.example"
    assert Reward(source="a.b:polite", name="p").label == "p"


def test_reward_model_need_not_be_a_term(module: ModuleType) -> None:
    assert not Rewards([Reward(source="my_rewards:length")]).uses_reward_model


def test_endpoint_is_asked_again_when_it_fails(service: Service) -> None:
    service.failures = [503, 500]
    assert list(Rewards([Reward(source=service.url)])(PROMPTS, RESPONSES).values()) == [[1.0, 2.0]]
    assert len(service.requests) == 3


def test_endpoint_that_goes_on_failing_is_an_error_that_names_it(service: Service) -> None:
    service.failures = [500] * 9
    with pytest.raises(UserError, match=service.url):
        Rewards([Reward(source=service.url, retries=1)])(PROMPTS, RESPONSES)
    assert len(service.requests) == 2


@pytest.mark.parametrize("answer", [{}, [1, 2], {"rewards": 3}, {"rewards": [1.0]}, {"rewards": [1.0, "x"]}])
def test_endpoint_that_answers_rubbish_is_an_error(service: Service, answer: object) -> None:
    service.answer = answer
    with pytest.raises(UserError, match=r"ppo\.rewards"):
        Rewards([Reward(source=service.url)])(PROMPTS, RESPONSES)


def test_nobody_listening_is_an_error() -> None:
    with pytest.raises(UserError, match=r"127.0.0.1:9.*resumes"):
        Rewards([Reward(source="http://127.0.0.1:9/", retries=0)])(PROMPTS, RESPONSES)


def test_bearer_token_comes_from_a_variable(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    term = Reward(source=service.url, key_variable="SCORER_KEY")
    monkeypatch.delenv("SCORER_KEY", raising=False)
    with pytest.raises(UserError, match="SCORER_KEY is not set"):
        Rewards([term])
    monkeypatch.setenv("SCORER_KEY", "0dd-key-of-a-test\n")
    Rewards([term])(PROMPTS, RESPONSES)
    assert service.keys == ["Bearer 0dd-key-of-a-test"]
    assert str(UserError("401 for 0dd-key-of-a-test")) == "401 for [redacted]"


@pytest.mark.parametrize("key", ["", " \n", "two\nlines", "schlüssel", "tab\tbed"])
def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCORER_KEY", key)
    with pytest.raises(UserError, match="SCORER_KEY holds no bearer token") as caught:
        Rewards([Reward(source="https://host/", key_variable="SCORER_KEY")])
    assert not key.strip() or key not in str(caught.value)


def test_a_redirect_is_refused_and_not_followed(service: Service) -> None:
    service.redirect = "http://user:hidden@127.0.0.1:9/?token=hidden"
    with pytest.raises(UserError, match="it redirects, with status 307") as caught:
        Rewards([Reward(source=service.url)])(PROMPTS, RESPONSES)
    assert "hidden" not in str(caught.value) and len(service.requests) == 1


def test_numbers_of_torch_and_numpy_are_taken(module: ModuleType) -> None:
    vars(module)["mixed"] = lambda prompts, completions: [torch.tensor(1.5), np.float32(0.5)]
    assert Rewards([Reward(source="my_rewards:mixed")])(PROMPTS, RESPONSES) == {"mixed": [1.5, 0.5]}


def test_endpoint_that_does_not_answer_in_time_is_an_error(service: Service) -> None:
    service.delay = 1.0
    with pytest.raises(UserError, match=r"longer than timeout_seconds, 0\.1.*resumes"):
        Rewards([Reward(source=service.url, timeout_seconds=0.1, retries=0)])(PROMPTS, RESPONSES)
    assert Rewards([Reward(source=service.url, timeout_seconds=10, retries=0)])(PROMPTS, RESPONSES)


def test_the_reward_models_term_may_have_a_name() -> None:
    rewards = Rewards([Reward(name="quality"), Reward(name="half", weight=0.5)])
    assert rewards.uses_reward_model and rewards.of_reward_model == ["quality", "half"]
    assert rewards.total({name: torch.tensor([2.0]) for name in ("quality", "half")}).tolist() == [3.0]


@pytest.mark.parametrize(
    ("source", "reason"), [("no_such:f", "cannot import"), ("my_rewards:f", "no function")]
)
def test_missing_functions_are_named(module: ModuleType, source: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        Rewards([Reward(source=source)])


def test_two_terms_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two terms are called rm; set their name"):
        Ppo(rewards=[Reward(), Reward(weight=2)])
    with pytest.raises(ValueError, match="rm is the reward model"):
        Ppo(rewards=[Reward(source="my_rewards:rm")])


def shaper(**settings) -> RewardShaper:
    return RewardShaper(Ppo(**({"missing_eos_penalty": None} | settings)))


def shape(totals: list[float], shaper_used: RewardShaper | None = None, **settings) -> list[float]:
    lengths, ended = torch.tensor([2, 5]), torch.tensor([True, False])
    return (shaper_used or shaper(**settings)).shape(torch.tensor(totals), lengths, ended).tolist()


def test_penalties_by_hand() -> None:
    assert shape([1.0, 3.0]) == [1.0, 3.0]
    assert shape([1.0, 3.0], missing_eos_penalty=2.0) == [1.0, 1.0]
    assert shape([1.0, 3.0], length_penalty=0.1) == pytest.approx([0.8, 2.5])
    assert shape([-9.0, 3.0], clip_reward=2.5, missing_eos_penalty=1.0) == [-2.5, 1.5]  # clipped before
    assert math.isnan(shape([math.inf, 3.0], clip_reward=2.5)[0]), "infinity is not made a number"


def test_normalisation_runs_over_batches_and_is_remembered() -> None:
    first, resumed = shaper(normalize_rewards=True), shaper(normalize_rewards=True)
    assert shape([1.0, 3.0], first) == pytest.approx([-1.0, 1.0])
    saved = json.dumps(first.state_dict().values)  # it goes into checkpoints
    resumed.load_state_dict(State(json.loads(saved)))
    # 1, 3, 5, 7: mean 4, variance 5
    second = shape([5.0, 7.0], resumed)
    assert second == pytest.approx([1 / math.sqrt(5), 3 / math.sqrt(5)])
