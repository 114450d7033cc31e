"""`tristage serve`: check the address, load the models, serve until a signal."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from transformers import PreTrainedTokenizerBase

from apps.answers.loading import load
from apps.serve.app import application
from apps.serve.service import Service
from apps.trained_run import TrainedRun
from configs.errors import UserError
from configs.safe_text import keep_secret
from pipeline.processes.signals import handled_by
from pipeline.processes.streams import say

SECONDS_TO_END = 5  # in which open connections end after a signal


def checked_key(host: str, key: str | None) -> str | None:
    """The API key, or None on loopback.

    Raises:
        UserError: other machines reach the address and there is no key, or it cannot be sent in a header.
    """
    if key is None:
        if not _is_loopback(host):
            raise UserError(
                f"--host {host:.100}: other machines reach this address. Set TRISTAGE_API_KEY, the key that "
                "they must give, or serve on 127.0.0.1."
            )
        return None
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(
            "TRISTAGE_API_KEY: this is no key: it is empty, or has blanks or other characters that a header "
            "cannot hold. Set it again."
        )
    keep_secret(key)
    return key


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket on the address. 0 is any free port.

    Raises:
        UserError: the address is taken, or is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise UserError(
            f"--host {host:.100} --port {port}: cannot serve there: {error.strerror}. Give another address."
        ) from None
    return listener


def open_service(run: TrainedRun, policies: Sequence[str] | None) -> tuple[Service, PreTrainedTokenizerBase]:
    """The service of a run and its tokenizer. The reward model is served if the run has one.

    Raises:
        UserError: a policy is not there, is damaged, or does not fit.
    """
    loaded = load(run, policies or run.policies, score=True)
    return Service(run, loaded), loaded.tokenizer


class Server(uvicorn.Server):
    """uvicorn's server. The caller handles signals; requests in progress end at once."""

    def __init__(self, app: Starlette, service: Service) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                ws="none",
                timeout_graceful_shutdown=SECONDS_TO_END,
            )
        )
        self._service = service

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End requests in progress, then wait for connections to close."""
        self._service.close()
        await super().shutdown(sockets)


def serve(run: TrainedRun, policies: Sequence[str] | None, host: str, port: int, key: str | None) -> int:
    """Serve until SIGINT or SIGTERM. Returns the exit status.

    Raises:
        UserError: see `checked_key`, `listening_socket` and `open_service`.
    """
    key = checked_key(host, key)
    with listening_socket(host, port) as listener:
        service, tokenizer = open_service(run, policies)
        server = Server(application(service, tokenizer, key), service)
        name, port = listener.getsockname()[:2]
        shown = f"[{name}]" if ":" in name else name
        served = ", ".join(service.about()["policies"])
        say(f"serving {served} at http://{shown}:{port} (page) and http://{shown}:{port}/v1; Ctrl-C ends")
        with handled_by(server.handle_exit):
            server.run(sockets=[listener])
    say("stopped")
    return 0
