"""An HTTP server on an address of this machine."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.staticfiles import StaticFiles

from configs.errors import UserError
from pipeline.processes.signals import handled_by

SHARED = ("apps.web", "page")  # the look of all pages
SECONDS_TO_END = 5  # in which open connections end after a signal


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that listens on the address. 0 is any free port.

    Clients can connect at once, and wait until the server runs. A second server is refused at once, too.

    Raises:
        UserError: the address is taken, or is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        raise UserError(
            f"--host {host:.100} --port {port}: cannot serve there: {error.strerror}. Give another address."
        ) from None
    return listener


def page_files(folder: Path) -> StaticFiles:
    """The files of a page, and those that all pages share."""
    return StaticFiles(directory=folder, packages=[SHARED])


def url_of(listener: socket.socket) -> str:
    """The URL of a listening socket; if it listens on all addresses, by the name of this machine."""
    name, port = listener.getsockname()[:2]
    name = socket.gethostname() if ipaddress.ip_address(name).is_unspecified else name
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


class Server(uvicorn.Server):
    """uvicorn's server. The caller handles signals; requests in progress end at once."""

    def __init__(self, app: Starlette, close: Callable[[], None] = lambda: None) -> None:
        """`close` is called before connections end."""
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
        self._close = close
        self._announce: Callable[[], None] = lambda: None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End requests in progress, then wait for connections to close."""
        self._close()
        await super().shutdown(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and only then say so."""
        await super().startup(sockets)
        self._announce()

    def run_at(self, listener: socket.socket, announce: Callable[[], None]) -> None:
        """Serve until SIGINT or SIGTERM. `announce` is called once clients can connect."""
        self._announce = announce
        with handled_by(self.handle_exit):
            self.run(sockets=[listener])
