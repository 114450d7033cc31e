"""The bodies of requests. What this server does not do is refused by name."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from apps.web.body import Body, Form, json_object, validated
from apps.web.errors import ApiError

# Parameters without influence on an answer.
IGNORED = (
    *("user", "store", "metadata", "service_tier", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention"),
)
# Parameters that this server does not have. Accepted is the value that changes nothing.
NEUTRAL: dict[str, Any] = {
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": {},
    "best_of": 1,
    "echo": False,
    "suffix": "",
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "tools": [],
    "parallel_tool_calls": True,
}
Stop = Annotated[str, Field(min_length=1, max_length=256)]


class TextPart(Form):
    """A part of a message. Only text is known."""

    type: Literal["text"]
    text: str


class ChatMessage(Form):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        """Role and text."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": self.role, "content": text}


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=256)]


class StreamOptions(Form):
    """What a stream tells besides text."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Sampled(Form):
    """What chat and text completions share. Sampling defaults to that of the run's `ppo.rollout`."""

    model: str
    n: int = Field(1, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**20)  # as in vLLM; 0 is all
    max_tokens: int | None = Field(None, ge=1)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] = Field(default_factory=list)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else self.stop


class ChatForm(Sampled):
    """POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)


class TextForm(Sampled):
    """POST /v1/completions."""

    prompt: str | Annotated[list[str], Field(min_length=1)]
    logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def prompts(self) -> list[str]:
        """The prompts."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class ScoreForm(Form):
    """POST /v1/score: prompts with completions, or conversations that end with the answer.

    Attributes:
        ended: whether each completion ended its turn; by default, all did.
        messages: a conversation, or several.
    """

    prompts: list[str] | None = None
    completions: list[str] | None = None
    ended: list[bool] | None = None
    messages: Messages | list[Messages] | None = None
    model: str | None = None


def parse(form: type[Body], content: bytes) -> Body:
    """The form in a request's body; see `validated`."""
    return validated(form, _without_neutral(json_object(content), form))


def _without_neutral(body: dict[str, Any], form: type[Form]) -> dict[str, Any]:
    """The body without parameters that are null, are ignored, or change nothing."""
    kept = {}
    for key, value in body.items():
        if value is None or key in IGNORED:
            continue
        if key in NEUTRAL and key not in form.model_fields:
            if value != NEUTRAL[key]:
                only = json.dumps(NEUTRAL[key])
                raise ApiError(
                    400, f"{key}: this server has only {only}.", param=key, code="unsupported_value"
                )
            continue
        kept[key] = value
    return kept | ({"messages": _plain(kept["messages"])} if "messages" in kept else {})


def _plain(messages: Any, lists: int = 2) -> Any:
    """Messages, or lists of them, without what clients add: keys that are null or empty, and a type."""
    if isinstance(messages, list) and lists:
        return [_plain(message, lists - 1) for message in messages]
    if not isinstance(messages, dict):
        return messages
    return {
        key: value
        for key, value in messages.items()
        if key == "content" or not (value is None or value == [] or (key, value) == ("type", "text"))
    }
