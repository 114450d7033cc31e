"""A server of a finished run in a thread of the test process, and raw requests to it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import requests

from apps.answers.decoder import Room
from apps.serve.app import application
from apps.serve.limits import Limits
from apps.serve.service import Service
from apps.trained_run import LoadedPolicies, TrainedRun
from apps.web.server import Server, listening_socket
from tests.support.waiting import SECONDS, until


@dataclass(frozen=True)
class Address:
    """Where a server listens, and its key."""

    url: str
    service: Service
    key: str | None = None

    def get(self, path: str, **headers: str) -> requests.Response:
        return requests.get(self.url + path, headers=headers, timeout=SECONDS)

    def post(self, path: str, body: Any, **options: Any) -> requests.Response:
        return requests.post(self.url + path, **({"json": body, "timeout": SECONDS} | options))


@contextmanager
def serving(
    run: TrainedRun,
    loaded: LoadedPolicies,
    key: str | None = None,
    limits: Limits | None = None,
    room: Room | None = None,
    listener: socket.socket | None = None,
) -> Iterator[Address]:
    """Serve while the context is open, on a free port of this machine unless `listener` is given."""
    service = Service(run, loaded, limits, room)
    server = Server(application(service, loaded.tokenizer, key, limits), service.close)
    with listener or listening_socket("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
        thread.start()
        until(lambda: server.started)
        yield Address(f"http://127.0.0.1:{listener.getsockname()[1]}", service, key)
        server.should_exit = True
        thread.join(SECONDS)
        assert not thread.is_alive()
