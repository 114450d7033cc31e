"""The YAML file of an endpoint that judges answers: its keys, its reader and its digest."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue, ValidationError, field_validator, model_validator

from configs.errors import UserError
from configs.schema import Section, plain_url
from configs.sections.values import NonNegative, PlainNumber, variable_name
from configs.yaml_file import first_fault, read_yaml

Mode = Literal["pairs", "ranking"]
FIELDS: dict[Mode, tuple[str, ...]] = {
    "pairs": ("{a}", "{b}"),
    "ranking": ("{answers}",),
}
PROMPT, LAST = (
    "{prompt}",
    "{last}",
)  # the whole conversation, and its last message; a template has one of them
TEMPLATES: dict[Mode, str] = {
    "pairs": """Which answer to the prompt is better? Judge by what it says, not by its length.

Prompt: {prompt}

Answer A: {a}

Answer B: {b}

Reply with one letter, A or B.""",
    "ranking": """Rank the answers to the prompt from best to worst. Judge by what they say, not by length.

Prompt: {prompt}

{answers}

Reply with all letters in order and nothing else, such as B > A = C > D. = joins equally good answers.""",
}
MAX_TOKENS: dict[Mode, int] = {"pairs": 16, "ranking": 256}
# What `parameters` may not say: other keys say it, or replies have one form. It may repeat the value here.
FIXED: dict[str, tuple[Any, str]] = {
    "messages": (..., "the question; write it in template"),
    "model": (..., "said by model; change it there"),
    "stream": (False, "not for a judge: its reply is read whole; leave it out"),
    "n": (1, "not for a judge: one reply is read; leave it out"),
}


class Price(Section):
    """Price of a million tokens, in any currency."""

    input: NonNegative = Field(description="of the prompt")
    output: NonNegative = Field(description="of the completion")


class JudgeEndpoint(Section):
    """An OpenAI-compatible endpoint that judges."""

    url: Annotated[str, AfterValidator(plain_url), Field(pattern=r"^https?://.+")] = Field(
        description="of chat completions, such as http://127.0.0.1:8000/v1/chat/completions"
    )
    model: Annotated[str, Field(min_length=1)] = Field(description="the model's name there")
    mode: Mode = Field(
        "pairs", description="`pairs`: two answers a request, in both orders; `ranking`: all answers in one"
    )
    template: str | None = Field(
        None,
        description="the question, with `{prompt}`, `{a}` and `{b}`; for a ranking, `{prompt}` and "
        "`{answers}`. `{prompt}` is the whole conversation, `{last}` its last message. Default: see below",
    )
    max_tokens: Annotated[int, Field(ge=1, le=100_000), PlainNumber] | None = Field(
        None, description="of a reply; default: 16, for a ranking 256"
    )
    parameters: dict[str, JsonValue] = Field(
        {},
        description="more keys of each request's body; null leaves a key out, such as `max_tokens: null`. "
        "`messages`, `model`, `stream` and `n` are refused",
    )
    key_variable: Annotated[str, AfterValidator(variable_name)] | None = Field(
        None, description="environment variable that holds the bearer token"
    )
    timeout_seconds: Annotated[float, Field(gt=0, le=86_400), PlainNumber] = Field(
        60.0, description="limit of one request"
    )
    retries: Annotated[int, Field(ge=0, le=1000), PlainNumber] = Field(
        5, description="of a failed request, with exponential backoff; `Retry-After` is obeyed up to a minute"
    )
    concurrency: Annotated[int, Field(ge=1, le=256), PlainNumber] = Field(8, description="requests at a time")
    price: Price | None = Field(
        None, description="of a million tokens, such as `{input: 0.15, output: 0.60}`; gives the cost"
    )

    @model_validator(mode="after")
    def _template_has_fields(self) -> JudgeEndpoint:
        missing = [field for field in FIELDS[self.mode] if field not in self.question]
        if PROMPT not in self.question and LAST not in self.question:
            missing.insert(0, f"{PROMPT} or {LAST}")
        if missing:
            raise ValueError(f"the template has no {missing[0]}, which mode: {self.mode} needs")
        return self

    @field_validator("parameters")
    @classmethod
    def _parameters_add(cls, parameters: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for key, (allowed, reason) in FIXED.items():
            value = parameters.get(key)
            if key in parameters and not (value is None and allowed is not ...) and value is not allowed:
                raise ValueError(f"{key} is {reason}")
        return parameters

    @property
    def question(self) -> str:
        """The template of a question."""
        return self.template or TEMPLATES[self.mode]

    def body(self, question: str) -> dict[str, Any]:
        """The body of a request."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": self.max_tokens or MAX_TOKENS[self.mode],
            "temperature": 0,
        }
        return {key: value for key, value in (body | self.parameters).items() if value is not None}


def read_judge(file: Path, key: str) -> JudgeEndpoint:
    """The endpoint that a YAML file describes.

    Args:
        key: of the configuration, or option, for messages.

    Raises:
        UserError: the file cannot be read, or a key is missing, unknown or out of range.
    """
    try:
        return JudgeEndpoint.model_validate(read_yaml(file, key))
    except ValidationError as error:
        raise UserError(f"{key}: {file!s:.200}: {first_fault(error, JudgeEndpoint)}.") from None


def judge_digest(file: Path) -> str | None:
    """SHA-256 of what a judge's file asks, and of whom; None if there is no file.

    Keys of how it asks, such as timeouts, leave the digest as it is: they change no verdict.
    """
    if not os.path.isfile(file):
        return None
    try:
        judge = read_judge(file, "")
        asked = json.dumps([judge.url, judge.mode, judge.question, judge.body("")], sort_keys=True)
    except UserError as error:  # the stage reports it
        asked = str(error)
    return hashlib.sha256(asked.encode()).hexdigest()
