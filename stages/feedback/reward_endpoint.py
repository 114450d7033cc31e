"""A reward term that an HTTP service computes."""

from __future__ import annotations

import os
from collections.abc import Sequence

import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from configs.errors import UserError
from configs.safe_text import keep_secret
from configs.schema import Reward


class Endpoint:
    """An HTTP service: POST {"prompts": [...], "completions": [...]}, answered by {"rewards": [...]}."""

    def __init__(self, term: Reward) -> None:
        self._url, self._timeout = term.source, term.timeout_seconds
        retry = Retry(
            term.retries,
            backoff_factor=0.5,
            status_forcelist=[429, 500, 502, 503, 504],
            allowed_methods=None,
            respect_retry_after_header=True,
            retry_after_max=60,  # seconds; the other ranks are waiting
        )
        self._session = requests.Session()
        self._session.mount(term.source, HTTPAdapter(max_retries=retry))
        if term.key_variable:
            self._session.headers["Authorization"] = f"Bearer {_key(term.key_variable)}"

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        body = {"prompts": list(prompts), "completions": list(responses)}
        try:
            answer = self._session.post(self._url, json=body, timeout=self._timeout, allow_redirects=False)
            if answer.is_redirect:
                raise ValueError(f"status {answer.status_code}, a redirect; name the URL that answers itself")
            answer.raise_for_status()
            rewards = list(answer.json()["rewards"])
        except (requests.RequestException, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"ppo.rewards: {self._url} gave no rewards ({type(error).__name__}: {error}). It must answer "
                '{"rewards": [one number for each completion]}. Once it does, the same command resumes.'
            ) from error
        return rewards


def _key(variable: str) -> str:
    """The bearer token in an environment variable, without the line break that `$(cat FILE)` may leave.

    Raises:
        UserError: there is none, or an HTTP header cannot hold it. The message does not repeat it.
    """
    if variable not in os.environ:
        raise UserError(f"ppo.rewards: the environment variable {variable} is not set.")
    key = os.environ[variable].strip()
    if not (key and key.isascii() and key.isprintable()):
        raise UserError(
            f"ppo.rewards: the environment variable {variable} is empty, or has line breaks or letters "
            "beyond ASCII, which an HTTP header cannot hold. Set it to the key alone."
        )
    keep_secret(key)
    return key
