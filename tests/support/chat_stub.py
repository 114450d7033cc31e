"""A server that answers chat completions with what a function says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
Answer = str | bytes | tuple[int, bytes]  # the content of a message, a whole body, or a status with a body


@dataclass
class ChatStub:
    """A running server: its address, and the requests so far with the keys that they bore."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    @property
    def questions(self) -> list[str]:
        """What was asked, in the order of arrival."""
        return [body["messages"][0]["content"] for body in self.bodies]


@contextmanager
def chat_stub(answer: Callable[[dict[str, Any]], Answer]) -> Iterator[ChatStub]:
    """Serve on a free port of the loopback. `answer` gets a request's body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stub.bodies.append(body)
            stub.keys.append(self.headers["Authorization"])
            given = answer(body)
            status, content = given if isinstance(given, tuple) else (200, given)
            if isinstance(content, str):
                completion = {"choices": [{"message": {"content": content}}], "usage": USAGE}
                content = json.dumps(completion).encode()
            with suppress(OSError):  # the other side has left
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

    server = Server(("127.0.0.1", 0), Handler)
    stub = ChatStub(f"http://127.0.0.1:{server.server_port}/v1/chat/completions")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
