"""Whatever an endpoint answers, it is numbers or an error for the user."""

from __future__ import annotations

import json
import math
import threading
from socketserver import StreamRequestHandler, ThreadingTCPServer

import pytest
import urllib3.util.retry
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import Reward
from stages.feedback.rewards import Rewards
from tests.contract.bad_inputs.fuzzing import contents, mutated, quick, scalars, told, trees

GOOD = b'{"rewards": [1.0, 2]}'
GOOD_HTTP = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(GOOD), GOOD)
EVIL = (
    "",
    "x",
    "-1",
    "0",
    "99999999999999999999",
    "9" * 5000,
    "chunked",
    "gzip",
    "deflate",
    "br",
    "zstd",
    "é\x00",
    "Fri, 31 Dec 99999 23:59:59 GMT",
    "Mon, 99 Foo 0000",
    "1, 2",
    "close",
    "a=b; c",
    "http://[",
    "text/json; charset=zork",
)
header = st.builds(
    "{}: {}\r\n".format,
    st.sampled_from(
        [
            "Content-Length",
            "Transfer-Encoding",
            "Content-Encoding",
            "Retry-After",
            "Location",
            "Connection",
            "Set-Cookie",
            "Content-Type",
            "Date",
            "",
            " ",
        ]
    ),
    st.sampled_from(EVIL) | st.text(st.characters(max_codepoint=255), max_size=8),
)
status = st.sampled_from(
    [
        "200 OK",
        "100 Continue",
        "101 x",
        "204 None",
        "206 x",
        "301 x",
        "304 x",
        "401 é",
        "429 x",
        "503 x",
        "999 x",
        "0",
        "-1",
        "200",
        "x",
    ]
)
numbers = st.lists(st.floats() | st.integers() | scalars, min_size=1, max_size=3)
bodies = (
    contents
    | mutated(GOOD)
    | trees.map(lambda tree: json.dumps(tree).encode())
    | st.builds(lambda values: json.dumps({"rewards": values}).encode(), numbers | trees)
)


def http(status: str, headers: list[str], body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\n{''.join(headers)}\r\n".encode("latin-1", "replace") + body


def of_length(body: bytes) -> bytes:
    return http("200 OK", [f"Content-Length: {len(body)}\r\n"], body)


class Service(ThreadingTCPServer):
    """Sends `answer` to every request, and closes the connection."""

    daemon_threads = True
    answer = b""


class Handler(StreamRequestHandler):
    server: Service

    def handle(self) -> None:
        head = iter(self.rfile.readline, b"\r\n")
        length = dict(line.lower().split(b": ", 1) for line in list(head)[1:])[b"content-length"]
        self.rfile.read(int(length))
        self.wfile.write(self.server.answer)


@pytest.fixture(scope="module")
def service():
    with pytest.MonkeyPatch.context() as patch, Service(("127.0.0.1", 0), Handler) as service:
        patch.setattr(urllib3.util.retry.time, "sleep", lambda seconds: None)
        threading.Thread(target=service.serve_forever, daemon=True).start()
        yield service
        service.shutdown()


def check_answer(service: Service, answer: bytes, retries: int) -> None:
    service.answer = answer
    term = Reward(
        source=f"http://127.0.0.1:{service.server_address[1]}/score",
        name="service",
        retries=retries,
        timeout_seconds=5,
    )
    with told():
        rewards = Rewards([term])(["p", "q"], ["a", "b"])["service"]
        assert len(rewards) == 2 and all(
            isinstance(reward, float) and math.isfinite(reward) for reward in rewards
        )


@quick
@given(body=bodies)
def test_bodies(service, body):
    check_answer(service, of_length(body), retries=0)


@quick
@given(
    answer=contents
    | mutated(GOOD_HTTP)
    | st.builds(http, status, st.lists(header, max_size=3), st.just(GOOD) | bodies),
    retries=st.integers(0, 1),
)
def test_bytes(service, answer, retries):
    check_answer(service, answer, retries)
