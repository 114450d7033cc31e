"""Errors of the servers, in OpenAI's form: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from configs.safe_text import safe, visible

logger = logging.getLogger("tristage")
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """A request gets no answer.

    Attributes:
        status: of HTTP.
        param: the parameter at fault.
        code: for programs.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(safe(message))
        self.status, self.param, self.code, self.headers = status, param, code, headers

    def body(self) -> dict[str, Any]:
        """The JSON of the response."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The response itself."""
        return JSONResponse(self.body(), self.status, headers=self.headers)


def busy(what: str) -> ApiError:
    """The server has too much to do. OpenAI's client repeats such a request by itself."""
    return ApiError(
        429, f"{what}. Try again in a second.", code="rate_limit_exceeded", headers={"Retry-After": "1"}
    )


def closing() -> ApiError:
    """The server is about to end."""
    return ApiError(503, "The server is shutting down.", code="shutting_down")


async def on_api_error(_: Request, error: Exception) -> JSONResponse:
    """Starlette's handler of `ApiError`."""
    assert isinstance(error, ApiError)
    return error.response()


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """Starlette's handler of its own errors: no such path, no such method."""
    assert isinstance(error, HTTPException)
    phrase, path = HTTPStatus(error.status_code).phrase, request.url.path
    message = {
        404: f"{request.method} {path:.200}: there is no such path.",
        405: f"{request.method} {path:.200}: this path has another method.",
    }.get(error.status_code, f"{phrase}.")
    return ApiError(error.status_code, message, headers=error.headers).response()


async def on_bug(request: Request, error: Exception) -> JSONResponse:
    """Starlette's handler of any other error. It is a fault of this program."""
    logger.error("%s %s failed", request.method, visible(request.url.path), exc_info=error)
    return ApiError(500, "The server failed on this request. Its log says why.").response()


HANDLERS: dict[Any, Any] = {ApiError: on_api_error, HTTPException: on_http_error, Exception: on_bug}
