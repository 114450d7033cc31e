"""Reward endpoints: what they may answer, how long they may take, and keys that are none."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

import pytest

from configs.errors import UserError
from configs.schema import Reward
from stages.feedback import reward_endpoint
from stages.feedback.rewards import Rewards
from tests.contract.bad_inputs.entry import check_message

PROMPTS, COMPLETIONS = ["a", "b"], ["short", "much longer"]
HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


def body(text: bytes, head: bytes = HEAD) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(text) + text


@contextmanager
def server(answer: bytes, pause: float = 0.0, repeat: int = 1) -> Iterator[str]:
    """A service that sends `answer`, byte by byte if there is a `pause`; its URL."""

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            head = iter(self.rfile.readline, b"\r\n")
            length = dict(line.lower().split(b": ", 1) for line in list(head)[1:])[b"content-length"]
            self.rfile.read(int(length))
            try:
                for part in [answer[i : i + 1] for i in range(len(answer))] if pause else [answer] * repeat:
                    self.request.sendall(part)
                    time.sleep(pause)
            except OSError:  # the other side has left
                pass

    class Server(ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{service.server_address[1]}/score"
        service.shutdown()


def asked(url: str, **settings: Any) -> list[float]:
    rewards = Rewards([Reward(source=url, **{"retries": 0, "name": "service"} | settings)])
    return rewards(PROMPTS, COMPLETIONS)["service"]


ANSWERS = {
    b'{"rewards": [1.0, NaN]}': "NaN is no number of JSON",
    b'{"rewards": [1.0, Infinity]}': "Infinity is no number of JSON",
    b'{"rewards": [1.0, -Infinity]}': "-Infinity is no number of JSON",
    b'{"rewards": [1.0, 1e999]}': "gave inf for completions[1]",
    b'{"rewards": [1.0, %s]}' % (b"9" * 400): "gave inf for completions[1]",
    b'{"rewards": [1.0, %s]}' % (b"9" * 5000): "gave inf for completions[1]",
    b'{"rewards": [1.0, 2.0], "error": "no model"}': "it says that there was an error: 'no model'",
    b'{"rewards": [1.0, -1e39]}': "gave -1e+39 for completions[1]",
    b'{"rewards": [true, 1.0]}': "gave True for completions[0]",
    b'{"rewards": [1.0, "2"]}': "gave '2' for completions[1]",
    b'{"rewards": [1.0, null]}': "gave None for completions[1]",
    b'{"rewards": [1.0, 2.0], "rewards": [2.0, 1.0]}': "in its answer, 'rewards' is given twice",
    b'{"rewards": [1.0]}': "must give a number for each of 2 completions, gave 1",
    b'{"rewards": {"0": 1, "1": 2}}': "its answer is b'{",
    b'{"rewards": "12"}': "its answer is b'{",
    b"[1.0, 2.0]": "its answer is b'[1.0, 2.0]'",
    b"[" * 10**5 + b"]" * 10**5: "its answer is not JSON: maximum recursion depth",
    b'{"rewards": ' + b"[" * 10**5 + b"]" * 10**5 + b"}": "its answer is not JSON: maximum recursion depth",
    b"": "its answer is not JSON",
    b"\xff\xfe\x00": "its answer is not JSON",
}


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: repr(answer[:30]))
def test_what_an_endpoint_answers(answer: bytes) -> None:
    with server(body(answer)) as url, pytest.raises(UserError) as caught:
        asked(url)
    check_message(str(caught.value), f"ppo.rewards: {url} ", ANSWERS[answer])


def test_an_answer_without_end_is_not_read_whole() -> None:
    with server(HEAD + b"\r\n", repeat=1) as url, pytest.raises(UserError, match="not JSON"):
        asked(url)
    endless = HEAD + b"\r\n" + b" " * 2**20
    started = time.monotonic()
    with server(endless, repeat=10**5) as url, pytest.raises(UserError, match="larger than 16 MiB"):
        asked(url)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    "answer", [HEAD + b"X-Drip: " + b"x" * 100, body(b" " * 100)], ids=["headers", "body"]
)
def test_a_drip_is_bound_by_the_whole_request(answer: bytes) -> None:
    """Every byte comes well within the limit on silence."""
    started = time.monotonic()
    with (
        server(answer, pause=0.05) as url,
        pytest.raises(UserError, match=r"longer than timeout_seconds, 0\.5"),
    ):
        asked(url, timeout_seconds=0.5)
    assert time.monotonic() - started < 4


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_refused_and_not_shown(status: int) -> None:
    head = f"HTTP/1.1 {status} Moved\r\nLocation: http://127.0.0.1:9/?token=secret\r\n".encode()
    with server(body(b"", head)) as url, pytest.raises(UserError) as caught:
        asked(url)
    check_message(str(caught.value), url, f"it redirects, with status {status}; give its final address")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "header"),
    [(301, b"Location: \x80"), (301, b"Location: http://["), (503, b"Retry-After: soon")],
)
def test_headers_that_nobody_can_read(status: int, header: bytes) -> None:
    head = b"HTTP/1.1 %d No\r\n%s\r\n" % (status, header)
    with server(body(b"{}", head)) as url, pytest.raises(UserError) as caught:
        asked(url, retries=1)
    check_message(str(caught.value), f"ppo.rewards: {url} gave no rewards (")


@pytest.mark.parametrize("status", [300, 304, 600, 999])
def test_statuses_that_are_no_success(status: int) -> None:
    head = b"HTTP/1.1 %d No\r\n" % status
    with server(body(b'{"rewards": [1, 2]}', head)) as url, pytest.raises(UserError, match=str(status)):
        asked(url)


@pytest.mark.parametrize("status", [400, 401, 404, 418, 501, 505])
def test_statuses_after_which_nothing_is_asked_again(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_endpoint.Retry, "sleep", lambda *_: pytest.fail("it is asked again"))
    with (
        server(body(b"{}", b"HTTP/1.1 %d No\r\n" % status)) as url,
        pytest.raises(UserError, match=str(status)),
    ):
        asked(url, retries=9)


@pytest.mark.parametrize("key", ["", " ", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_is_none(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORER_KEY", key)
    with pytest.raises(UserError) as caught:
        Rewards([Reward(source="http://127.0.0.1:9/", key_variable="SCORER_KEY")])
    check_message(str(caught.value), "the environment variable SCORER_KEY holds no bearer token")
    assert not key.strip() or key not in str(caught.value)


def test_a_line_break_after_a_key_is_not_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORER_KEY", "planted-secret\n")
    with server(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n") as url, pytest.raises(UserError) as caught:
        asked(url, key_variable="SCORER_KEY")
    assert "401" in str(caught.value) and "planted-secret" not in str(caught.value)


def test_a_good_answer() -> None:
    text = json.dumps({"rewards": [1, 2.5], "model": "x"}).encode()
    with server(body(text)) as url:
        assert asked(url) == [1.0, 2.5] and math.isfinite(sum(asked(url, timeout_seconds=86_400)))
    assert reward_endpoint.MOST_BYTES == 16 * 2**20
