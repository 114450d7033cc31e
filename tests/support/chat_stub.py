"""A server that answers chat completions with what a function says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class ChatStub:
    """A running server: its address, and the requests so far."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def chat_stub(answer: Callable[[dict[str, Any]], str | bytes]) -> Iterator[ChatStub]:
    """Serve on a free port of the loopback. `answer` returns the content of a message, or a whole body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stub.bodies.append(body)
            content = answer(body)
            if isinstance(content, str):
                content = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub = ChatStub(f"http://127.0.0.1:{server.server_port}/v1/chat/completions")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
