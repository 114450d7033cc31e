"""One answer: what was asked for, and what has been sampled of it so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from apps.answers.sampling import Sampling, Token
from apps.answers.text import AnswerText
from stages.sampling.decoding import Noise

Finish = Literal["stop", "length"]
SEEDS = 2**64


@dataclass(frozen=True)
class Order:
    """What to sample.

    Attributes:
        role: whose answer it is, as the base calls it.
        prompt_ids: tokens of the prompt.
        sampling: the distribution of each token.
        seed: of the noise. An answer is a function of prompt, role, sampling and seed.
        max_new_tokens: the most tokens.
        stop: strings before which the answer ends.
        top_logprobs: how many of the likeliest tokens to tell beside each token.
        joins: the answer goes on in the prompt's text, so a blank at its beginning is a part of it.
    """

    role: str
    prompt_ids: list[int]
    sampling: Sampling
    seed: int
    max_new_tokens: int
    stop: Sequence[str] = ()
    top_logprobs: int = 0
    joins: bool = False

    @property
    def longest(self) -> int:
        """Tokens of prompt and longest answer."""
        return len(self.prompt_ids) + self.max_new_tokens


@dataclass(frozen=True)
class Piece:
    """What is new of an answer.

    Attributes:
        text: may be empty, as text can be held back.
        tokens: without the end-of-turn token.
        finish: why the answer ended; None if it goes on.
        failed: why nothing follows, if the answer was given up.
    """

    text: str
    tokens: list[Token]
    finish: Finish | None = None
    failed: Literal["", "failed", "closing"] = ""


@dataclass(eq=False)
class Answer:
    """An answer while it is sampled.

    Attributes:
        deliver: called with each new piece.
        cancelled: nobody waits for it any more; its row is freed at the next step.
    """

    order: Order
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    deliver: Callable[[Piece], None] = lambda _: None
    cancelled: bool = False
    finish: Finish | None = None
    tokens: list[Token] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.noise = Noise([self.order.seed % SEEDS], self.device)
        before = self.order.prompt_ids[-1:] if self.order.joins else []
        self._text = AnswerText(self.tokenizer, self.order.stop, before)
        self._sent_text = self._sent_tokens = 0

    @property
    def text(self) -> str:
        """The text so far."""
        return self._text.text

    @property
    def is_over(self) -> bool:
        """Whether its row is free for others."""
        return self.cancelled or self.finish is not None

    def add(self, token: Token) -> None:
        """Add the next token, and deliver what is new."""
        self.tokens.append(token)
        self._text.add(token.id)
        if token.id == self.tokenizer.eos_token_id or self._text.stopped:
            self.finish = "stop"
        elif len(self.tokens) == self.order.max_new_tokens:
            self.finish = "length"
        if self.finish:
            self._text.end()
        if not self.cancelled and (self.finish or len(self.text) > self._sent_text):
            self.deliver(self._new())

    def _new(self) -> Piece:
        text, tokens = self.text[self._sent_text :], self.tokens[self._sent_tokens :]
        self._sent_text, self._sent_tokens = len(self.text), len(self.tokens)
        content = [token for token in tokens if token.id != self.tokenizer.eos_token_id]
        return Piece(text, content, self.finish)
