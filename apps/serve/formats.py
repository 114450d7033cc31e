"""Answers in the two forms of OpenAI's interface: chat completions and text completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from apps.answers.answer import Piece
from apps.answers.sampling import Token
from apps.answers.text import HALF

Json = dict[str, Any]


class Format(Protocol):
    """How choices look."""

    prefix: str  # of the response's id
    whole: str  # the kind of a whole response
    chunk: str  # the kind of a part of a stream

    def choice(self, index: int, piece: Piece) -> Json:
        """A whole answer."""

    def opening(self, index: int) -> Json | None:
        """What a stream begins a choice with, if anything."""

    def delta(self, index: int, piece: Piece) -> Json:
        """A part of an answer."""


@dataclass
class ChatFormat:
    """Choices of /v1/chat/completions."""

    tokenizer: PreTrainedTokenizerBase
    logprobs: bool
    prefix: str = "chatcmpl"
    whole: str = "chat.completion"
    chunk: str = "chat.completion.chunk"

    def choice(self, index: int, piece: Piece) -> Json:
        message = {"role": "assistant", "content": piece.text}
        return self._choice(index, "message", message, piece)

    def opening(self, index: int) -> Json | None:
        return self._choice(index, "delta", {"role": "assistant", "content": ""}, Piece("", []))

    def delta(self, index: int, piece: Piece) -> Json:
        return self._choice(index, "delta", {"content": piece.text} if piece.text else {}, piece)

    def _choice(self, index: int, key: str, value: Json, piece: Piece) -> Json:
        logprobs = {"content": [self._token(token) for token in piece.tokens]} if self.logprobs else None
        return {"index": index, key: value, "logprobs": logprobs, "finish_reason": piece.finish}

    def _token(self, token: Token) -> Json:
        top = [_named(self.tokenizer, id_, logprob) for id_, logprob in token.top]
        return _named(self.tokenizer, token.id, token.logprob) | {"top_logprobs": top}


@dataclass
class TextFormat:
    """Choices of /v1/completions."""

    tokenizer: PreTrainedTokenizerBase
    logprobs: bool
    prefix: str = "cmpl"
    whole: str = "text_completion"
    chunk: str = "text_completion"
    _offsets: dict[int, int] = field(default_factory=dict)  # characters of each choice so far

    def choice(self, index: int, piece: Piece) -> Json:
        return self.delta(index, piece)

    def opening(self, index: int) -> Json | None:
        return None

    def delta(self, index: int, piece: Piece) -> Json:
        logprobs = self._logprobs(index, piece.tokens) if self.logprobs else None
        return {"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish}

    def _logprobs(self, index: int, tokens: Sequence[Token]) -> Json:
        texts = [self.tokenizer.decode([token.id]) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(text)
        top = [{self.tokenizer.decode([id_]): logprob for id_, logprob in token.top} for token in tokens]
        logprobs = [token.logprob for token in tokens]
        return {"tokens": texts, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": offsets}


def _named(tokenizer: PreTrainedTokenizerBase, id_: int, logprob: float) -> Json:
    """A token as text; its bytes are unknown if it is a part of a character."""
    text = tokenizer.decode([id_])
    return {"token": text, "logprob": logprob, "bytes": None if HALF in text else list(text.encode())}


class Envelope:
    """What is around choices."""

    def __init__(self, form: Format, model: str) -> None:
        self._form = form
        self._head = {
            "id": f"{form.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, choices: Sequence[Json], usage: Json) -> Json:
        """A whole response."""
        return {**self._head, "object": self._form.whole, "choices": list(choices), "usage": usage}

    def chunk(self, choices: Sequence[Json]) -> Json:
        """A part of a stream."""
        return {**self._head, "object": self._form.chunk, "choices": list(choices)}


def usage(prompt_tokens: int, completion_tokens: int) -> Json:
    """The number of tokens. Each distinct prompt counts once; end-of-turn tokens count, too."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}
