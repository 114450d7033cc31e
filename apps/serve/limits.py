"""What the server refuses, so that no client can take all of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of requests.

    Attributes:
        body_bytes: of one request.
        body_seconds: to receive a body.
        requests: that are open at a time.
        choices: answers that one request may ask for: `n` times its prompts.
        queue: answers that wait for a row.
        seconds: from a request to the end of its answers.
        pairs: that one request may have scored.
        pairs_at_once: scored in one batch. Answers in progress wait meanwhile.
        scorings: requests for scores that are open at a time.
    """

    body_bytes: int = 8 * 2**20
    body_seconds: float = 30
    requests: int = 512
    choices: int = 16
    queue: int = 256
    seconds: float = 600
    pairs: int = 4096
    pairs_at_once: int = 16
    scorings: int = 16
