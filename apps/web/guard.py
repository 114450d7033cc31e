"""What every request passes before it reaches a path: host, key, and the number of open requests."""

from __future__ import annotations

import secrets
from collections.abc import Collection, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from apps.web.errors import ApiError, busy
from apps.web.server import is_loopback

PAGE = "/page/"  # the files of the page, which tell nothing of the run
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


class Guard:
    """Refuses requests before they are read.

    Args:
        keys: a client must give one of them, if there are any.
        open_paths: need no key, as the files of the page do not.
        requests: that are open at a time.

    Without keys, the server is on loopback. Any web page can send requests there from the browsers of its
    visitors. So their `Host` must be this machine, which a rebound name is not. And POST needs JSON: a
    browser asks before it sends that.
    """

    def __init__(
        self, app: ASGIApp, *, keys: Collection[str], open_paths: Collection[str], requests: int
    ) -> None:
        self._app, self._keys, self._open_paths, self._requests = app, keys, open_paths, requests
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if error := self._fault(scope):
            await error.response()(scope, receive, _with_headers(send))
            return
        self._open += 1
        try:
            await self._app(scope, receive, _with_headers(send))
        finally:
            self._open -= 1

    def _fault(self, scope: Scope) -> ApiError | None:
        headers, path = Headers(scope=scope), scope["path"]
        if not self._keys and not is_loopback(_name(headers.get("host", ""))):
            return ApiError(403, "The Host of this request is not this machine. Start the server with a key.")
        is_open = path in self._open_paths or path.startswith(PAGE)
        if self._keys and not is_open and given_key(headers, self._keys) is None:
            wanted = {"WWW-Authenticate": "Bearer"}
            return ApiError(401, "The API key is missing or wrong.", code="invalid_api_key", headers=wanted)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and kind != "application/json":
            return ApiError(415, "The body must be JSON, with the header Content-Type: application/json.")
        return busy("Too many requests are open") if self._open >= self._requests else None


def given_key(headers: Headers, keys: Collection[str]) -> str | None:
    """The one of `keys` that a client gives as its bearer token; None if it gives no such key."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    same = [key for key in keys if secrets.compare_digest(given.encode(), key.encode())]
    return same[0] if same and scheme.lower() == "bearer" else None


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _with_headers(send: Send) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sending
