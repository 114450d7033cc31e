"""An OpenAI-compatible endpoint as judge of two answers (Zheng et al. 2023), asked in both orders."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, Field, ValidationError

from configs.errors import UserError
from configs.raw_experiment import parse
from configs.regular_file import read_regular_file
from configs.schema import Section, plain_url
from stages.feedback.reward_endpoint import FAILURES, JsonService, failure_reason

VERDICT = re.compile(r"\b([AB])\b")
TEMPLATE = """Which answer to the prompt is better? Judge by what it says, not by its length.

Prompt: {prompt}

Answer A: {a}

Answer B: {b}

Reply with one letter, A or B."""


def _has_fields(template: str) -> str:
    missing = [field for field in ("{prompt}", "{a}", "{b}") if field not in template]
    if missing:
        raise ValueError(f"the template has no {missing[0]}")
    return template


class JudgeEndpoint(Section):
    """The YAML file of an endpoint judge."""

    url: Annotated[str, AfterValidator(plain_url), Field(pattern=r"^https?://.+")] = Field(
        description="of chat completions, such as http://127.0.0.1:8000/v1/chat/completions"
    )
    model: str = Field(description="the model's name there")
    template: Annotated[str, AfterValidator(_has_fields)] = Field(
        TEMPLATE,
        description="the question, with {prompt}, {a} and {b}; the answer's first A or B is the verdict",
    )
    key_variable: str | None = Field(None, description="environment variable that holds the bearer token")
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] = Field(16, description="of a verdict")
    timeout_seconds: Annotated[float, Field(gt=0, le=86_400)] = Field(
        60.0, description="limit of one request"
    )
    retries: Annotated[int, Field(ge=0, le=1000)] = Field(5, description="of a failed request")
    concurrency: Annotated[int, Field(ge=1, le=256)] = Field(8, description="requests at a time")


class EndpointJudge:
    """Asks an endpoint which of two answers is better.

    Attributes:
        unreadable: verdicts so far that named neither A nor B; each counts as a tie.
        asked: verdicts so far.
    """

    def __init__(self, config: JudgeEndpoint) -> None:
        """Raises UserError: the variable of the bearer token is not set."""
        self._config = config
        self._service = JsonService(
            "--judges", config.url, config.timeout_seconds, config.retries, config.key_variable
        )
        self.unreadable = self.asked = 0

    def prefer(self, prompts: Sequence[str], ours: Sequence[str], theirs: Sequence[str]) -> list[float]:
        """For each prompt 1 if our answer wins in both orders, 0 if it loses in both, else 1/2.

        Asking in both orders cancels a judge's liking for the first or the second place (Wang et al. 2023).

        Raises:
            UserError: the endpoint fails, or answers in another form.
        """
        questions = [
            question
            for prompt, mine, other in zip(prompts, ours, theirs, strict=True)
            for question in ((prompt, mine, other), (prompt, other, mine))
        ]
        with ThreadPoolExecutor(self._config.concurrency) as pool:
            verdicts = list(pool.map(lambda question: self._verdict(*question), questions))
        self.asked += len(verdicts)
        self.unreadable += verdicts.count(None)
        pairs = zip(verdicts[::2], verdicts[1::2], strict=True)
        return [1.0 if pair == ("A", "B") else 0.0 if pair == ("B", "A") else 0.5 for pair in pairs]

    def _verdict(self, prompt: str, a: str, b: str) -> str | None:
        parts = {"{prompt}": prompt, "{a}": a, "{b}": b}
        # In one pass, so that braces within an answer stay what they are.
        question = re.sub(r"\{(?:prompt|a|b)\}", lambda match: parts[match[0]], self._config.template)
        body = {
            "model": self._config.model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": self._config.max_tokens,
            "temperature": 0,
        }
        try:
            text = _content(self._service.ask(body))
        except FAILURES as error:
            raise UserError(
                f"--judges: {self._config.url} gave no verdict ({failure_reason(error)}). It must answer "
                "chat completions in OpenAI's form."
            ) from error
        found = VERDICT.search(text)
        return found[1] if found else None


def _content(answer: bytes) -> str:
    """The text of a chat completion; raises ValueError for anything else."""
    try:
        content: Any = json.loads(answer)["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError, RecursionError):
        raise ValueError(f"its answer is {answer!r:.100}") from None
    if not isinstance(content, str):
        raise ValueError(f"its content is {content!r:.100}")
    return content


def read_endpoint_judge(file: Path) -> EndpointJudge:
    """The judge that a YAML file describes.

    Raises:
        UserError: the file cannot be read, or a key is missing, unknown or out of range.
    """
    try:
        values, _, duplicates = parse(read_regular_file(file).decode())
        if duplicates:
            raise UserError(f"--judges: {file!s:.200}: {duplicates[0][0][-1]!s:.60} is given twice.")
        return EndpointJudge(JudgeEndpoint.model_validate(values))
    except OSError as error:
        raise UserError(
            f"--judges: {file!s:.200}: cannot be read: {error.strerror}. Name another file."
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        known = ", ".join(JudgeEndpoint.model_fields)
        raise UserError(
            f"--judges: {file!s:.200}: {where:.60}: {first['msg']:.150}. Its keys are {known}."
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--judges: {file!s:.200}: not YAML: {reason:.200}.") from None
