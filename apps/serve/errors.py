"""The errors that only a server of models has."""

from __future__ import annotations

from apps.answers.prompts import TooLong
from apps.web.errors import ApiError
from configs.errors import UserError


def unusable(error: UserError, param: str) -> ApiError:
    """What a reader of prompts refused."""
    code = "context_length_exceeded" if isinstance(error, TooLong) else None
    return ApiError(400, str(error), param=param, code=code)


def too_slow(seconds: float) -> ApiError:
    """A request takes longer than it may."""
    return ApiError(504, f"The request took longer than {seconds:g} seconds.", code="timeout")


def model_failed() -> ApiError:
    """The model raised an error, which the log has."""
    return ApiError(500, "The model failed on this request. The server's log says why.", code="model_error")
