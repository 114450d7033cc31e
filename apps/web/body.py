"""The bodies of requests: JSON objects of a known form, in bounded time and size."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request

from apps.web.errors import ApiError
from configs.safe_text import visible

Body = TypeVar("Body", bound="Form")


class Form(BaseModel):
    """Nothing is converted, and no key is unknown."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


async def read_body(request: Request, most: int, seconds: float) -> bytes:
    """The body of a request.

    Args:
        most: bytes.
        seconds: in which it must arrive.

    Raises:
        ApiError: it is larger, or takes longer.
    """
    content = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                content += part
                if len(content) > most:
                    raise ApiError(413, f"The body has more than {most:,} bytes.")
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {seconds:g} seconds.") from None
    return bytes(content)


def json_object(content: bytes) -> dict[str, Any]:
    """The JSON object in a body; raises ApiError if it is none."""
    try:
        body = json.loads(content, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is not JSON: {error!s:.200}.") from error
    if not isinstance(body, dict):
        raise ApiError(400, "The body is not a JSON object.")
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ApiError(400, "A text holds half of a surrogate pair, which no tokenizer can read.") from None
    return body


def validated(form: type[Body], body: dict[str, Any]) -> Body:
    """The form of a body; raises ApiError if something in it is wrong, unknown or not supported."""
    try:
        return form.model_validate(body)
    except ValidationError as error:
        raise _fault(_telling(error.errors(include_url=False, include_context=False))) from error


def _telling(errors: Sequence[ErrorDetails]) -> ErrorDetails:
    """The error that tells most of the first parameter at fault.

    Of a union there is an error for each member. That the value is no string or no list tells less than what
    is wrong within it.
    """
    first = [error for error in errors if error["loc"][:1] == errors[0]["loc"][:1]]
    return max(
        first, key=lambda error: (error["type"] not in ("string_type", "list_type"), len(error["loc"]))
    )


def _fault(error: ErrorDetails) -> ApiError:
    path = [part for part in error["loc"] if not (isinstance(part, str) and _names_a_type(part))]
    param = ".".join(map(str, path))[:100]
    if error["type"] == "extra_forbidden":
        message, code = "this server does not know it", "unknown_parameter"
    elif error["type"] == "missing":
        message, code = "it is missing", "missing_required_parameter"
    else:
        message, code = error["msg"], "invalid_value"
    return ApiError(400, f"{visible(param)}: {message}.", param=param, code=code)


def _names_a_type(part: str) -> bool:
    """Whether pydantic, not the client, wrote this part of a place: a member of a union."""
    return part in ("str", "ChatMessage") or "[" in part


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
