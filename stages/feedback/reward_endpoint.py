"""HTTP services, and a reward term that one computes. Time, size and form of answers are checked."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NoReturn, TypeVar

import requests
from urllib3.exceptions import HTTPError, MaxRetryError
from urllib3.util.retry import Retry

from configs.errors import UserError
from configs.safe_text import keep_secret
from configs.schema import Reward
from configs.unique_keys import DuplicateKey, unique_keys
from stages.feedback.user_functions import as_numbers

RETRIED_STATUS = (408, 409, 425, 429)  # and 500 or more, but for these:
LASTING_STATUS = (501, 505)  # not implemented, HTTP version: true of the next request, too
RETRIED_ERRORS = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    TimeoutError,
)
UNREADABLE = (ValueError, OverflowError, HTTPError)  # a header that requests or urllib3 cannot read
MOST_BYTES = 16 * 2**20  # of an answer
LONGEST = 200  # characters of what a service says of an error
Result = TypeVar("Result")


class Refused(Exception):
    """The service answered, and the answer is not what it must be."""


FAILURES = (requests.RequestException, *UNREADABLE, Refused, TimeoutError)  # of a service


class JsonService:
    """An HTTP service that is asked in JSON."""

    def __init__(self, key: str, url: str, seconds: float, retries: int, key_variable: str | None) -> None:
        """Prepare requests.

        Args:
            key: of the configuration, for messages.
            seconds: limit of one request.
            key_variable: the environment variable that holds the bearer token.

        Raises:
            UserError: the variable of the bearer token is not set, or holds no token.
        """
        self.url, self._seconds, self._retries = url, seconds, retries
        self._headers = {"Accept-Encoding": "identity"}  # a compressed answer may be larger than it seems
        if key_variable:
            self._headers["Authorization"] = f"Bearer {_token(key, key_variable)}"

    def ask(self, body: dict[str, Any]) -> bytes:
        """The service's answer. Requests that failed are repeated, at growing intervals.

        Raises:
            one of `FAILURES`: the service gave no answer, or one that is too large.
        """
        retry = Retry(self._retries, backoff_factor=0.5, retry_after_max=60)  # seconds; other ranks wait
        while True:
            raw: Any = None
            failure: Exception
            try:
                response, content = _within(self._seconds, lambda: self._post(body))
                if 200 <= response.status_code < 300:
                    return content
                refusal = Refused(f"status {response.status_code}{_said(content)}")
                if not _may_pass(response.status_code):
                    raise refusal
                raw, failure = response.raw, refusal
            except RETRIED_ERRORS as error:
                failure = error
            try:
                retry = retry.increment("POST", self.url, error=failure)
            except MaxRetryError:
                raise failure from None
            retry.sleep(raw)  # as long as its Retry-After says

    def _post(self, body: dict[str, Any]) -> tuple[requests.Response, bytes]:
        """One request: the response, and its whole content.

        Raises:
            Refused: it redirects, or it is too large.
        """
        with requests.post(
            self.url,
            json=body,
            headers=self._headers,
            timeout=self._seconds,
            allow_redirects=False,
            stream=True,
        ) as response:
            if response.is_redirect:  # its target may hold a secret, and is not where the user sends texts
                raise Refused(f"it redirects, with status {response.status_code}; give its final address")
            content = bytearray()
            for part in response.iter_content(2**16):
                content += part
                if len(content) > MOST_BYTES:
                    raise Refused(f"its answer is larger than {MOST_BYTES >> 20} MiB")
            return response, bytes(content)


class Endpoint:
    """An HTTP service: POST {"prompts": [...], "completions": [...]}, answered by {"rewards": [...]}."""

    def __init__(self, term: Reward) -> None:
        """Prepare requests.

        Raises:
            UserError: the variable of the bearer token is not set, or holds no token.
        """
        self._service = JsonService(
            "ppo.rewards", term.source, term.timeout_seconds, term.retries, term.key_variable
        )

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        """One number for each completion.

        Raises:
            UserError: the service fails, or gives something else.
        """
        url = self._service.url
        try:
            answer = self._service.ask({"prompts": list(prompts), "completions": list(completions)})
            rewards = _rewards(answer)
        except FAILURES as error:
            raise UserError(
                f"ppo.rewards: {url} gave no rewards ({failure_reason(error)}). It must answer "
                '{"rewards": [one number for each completion]}. Once it does, the same command resumes.'
            ) from error
        return as_numbers(rewards, completions, f"ppo.rewards: {url}")


def _within(seconds: float, call: Callable[[], Result]) -> Result:
    """The result of `call`. A socket's timeout bounds its silence only, and a slow drip is never silent.

    Raises:
        TimeoutError: it took longer. Its thread ends with the connection, or with this process.
    """
    result = Future[Result]()

    def work() -> None:
        try:
            result.set_result(call())
        except Exception as error:
            result.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return result.result(seconds)
    except TimeoutError:
        raise TimeoutError(f"it took longer than timeout_seconds, {seconds:g}") from None


def _rewards(answer: bytes) -> list[Any]:
    """The list in {"rewards": [...]}; raises Refused for anything else."""
    try:
        content = json.loads(
            answer, parse_int=float, parse_constant=_no_constant, object_pairs_hook=unique_keys
        )
    except DuplicateKey as error:
        raise Refused(f"in its answer, {error}") from error
    except (ValueError, RecursionError) as error:
        raise Refused(f"its answer is not JSON: {error!s:.100}") from error
    if not isinstance(content, dict) or not isinstance(content.get("rewards"), list):
        raise Refused(f"its answer is {answer!r:.100}")
    if fault := content.get("error"):
        raise Refused(f"it says that there was an error: {fault!r:.100}")
    rewards: list[Any] = content["rewards"]
    return rewards


def _may_pass(status: int) -> bool:
    """Whether the same request may succeed later."""
    return status in RETRIED_STATUS or (status >= 500 and status not in LASTING_STATUS)


def _said(content: bytes) -> str:
    """What a service says of an error: the message in OpenAI's form, or how its text begins."""
    try:
        message = json.loads(content)["error"]["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        message = content[:LONGEST].decode(errors="replace")
    words = " ".join(str(message).split())
    return f": {words:.{LONGEST}}" if words else ""


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _token(key: str, variable: str) -> str:
    """The bearer token in an environment variable, without the line break that a file of it may end in."""
    if variable not in os.environ:
        raise UserError(f"{key}: the environment variable {variable} is not set.")
    token = os.environ[variable].strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"{key}: the environment variable {variable} holds no bearer token: it is empty, or has "
            "blanks or other characters that a header cannot hold. Set it again."
        )
    keep_secret(token)
    return token


def failure_reason(error: Exception) -> str:
    """Why a service gave no usable answer, in a few words."""
    text = " ".join(str(error).split())
    return text if isinstance(error, Refused | TimeoutError) else f"{type(error).__name__}: {text:.300}"
