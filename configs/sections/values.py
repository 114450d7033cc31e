"""The types of values, and the base class of every section."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from configs.safe_text import may_hold_secret

KEY_ELSEWHERE = "name the variable of a token in key_variable"
NUMBER = re.compile(r"[-+]?((0|[1-9][0-9]*(_[0-9]+)*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
HOST = re.compile(r"([\w.-]+|\[[\da-fA-F:.]+\])(:\d{1,5})?")


def _plain_number(value: Any) -> Any:
    """Refuse booleans as numbers, and text that is not a plain decimal number.

    Python takes true for 1, and YAML takes `yes` and `on` for true. Pydantic takes '017' for 17.
    """
    if isinstance(value, bool):
        raise PydanticCustomError("boolean_for_number", "true or false in place of a number")
    if isinstance(value, str) and not NUMBER.fullmatch(value):
        raise PydanticCustomError("text_for_number", "text in place of a number")
    return value


def _printable(text: str) -> str:
    """Refuse text that a file name, a terminal or W&B cannot hold."""
    if not text:
        raise ValueError("'' is empty; write some text, or leave the key out")
    if any(letter < " " or letter == "\x7f" or "\ud800" <= letter <= "\udfff" for letter in text):
        fault = "a control character or half of a surrogate pair"
        raise ValueError(f"{text!r:.60} holds {fault}; write plain text")
    return text


def plain_url(source: str) -> str:
    """Refuse a URL that may hold a secret: configurations are saved, printed and sent to W&B."""
    if "://" not in source:
        return source
    parts = urlsplit(source)
    if "@" in parts.netloc:
        raise ValueError(f"a URL with a user's name or password in it; {KEY_ELSEWHERE}")
    if any(mark in source for mark in "?#;"):
        raise ValueError(f"a URL with a query, parameters or a fragment, which may be a key; {KEY_ELSEWHERE}")
    port = parts.netloc.rpartition(":")[2]
    bad_port = port.isdecimal() and not 0 < int(port) < 2**16
    if (
        not HOST.fullmatch(parts.netloc)
        or bad_port
        or any(letter.isspace() or letter == "\\" for letter in source)
    ):
        raise ValueError("a URL whose host and port are not readable; write https://HOST/PATH")
    return source


def variable_name(text: str) -> str:
    """Refuse what cannot be a variable's name, and do not repeat it: it may be the secret itself."""
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,99}", text):
        raise ValueError("key_variable must be the name of an environment variable, such as SCORER_KEY")
    return text


def _no_url(text: str) -> str:
    """Refuse a URL, a password or a token where a name or a path belongs. The message does not repeat it."""
    if may_hold_secret(text):
        raise ValueError("a URL, a password or a token; download the file, and give its path, or give a name")
    return text


Text = Annotated[str, AfterValidator(_printable), AfterValidator(_no_url)]
# Stands last, so that the bounds before it enter the JSON schema.
PlainNumber = BeforeValidator(_plain_number)
Function = Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]  # module:function
JUDGE_FILES = (".yaml", ".yml")
LabellerKind = Literal["file", "people", "shipped", "function", "endpoint"]
# The YAML file of an endpoint that judges; see configs/judge_file.py. Its pattern enters the JSON schema.
JudgeFile = Annotated[str, Field(pattern=r"\.ya?ml$"), AfterValidator(_printable), AfterValidator(_no_url)]
# Bounds far above what can be meant, so that a slip does not fill the memory.
Count = Annotated[int, Field(ge=1, le=10**9), PlainNumber]  # of steps and rows
Size = Annotated[int, Field(ge=1, le=2**20), PlainNumber]  # of what is in memory at once: sequences, tokens
Positive = Annotated[float, Field(gt=0, le=1e9), PlainNumber]
NonNegative = Annotated[float, Field(ge=0, le=1e9), PlainNumber]
Number = Annotated[float, Field(ge=-1e9, le=1e9), PlainNumber]
Fraction = Annotated[float, Field(ge=0, le=1), PlainNumber]
BelowOne = Annotated[float, Field(ge=0, lt=1), PlainNumber]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1), PlainNumber]
LearningRate = Annotated[float, Field(gt=0, le=1), PlainNumber]  # the bound catches 1e4 written for 1e-4


def labeller_kind(name: str) -> LabellerKind:
    """What a labeller or judge is, which its name tells."""
    if name == "file":
        return "file"
    if name == "people":
        return "people"
    if name.endswith(JUDGE_FILES):
        return "endpoint"
    return "function" if ":" in name else "shipped"


class Section(BaseModel):
    """A section of the configuration. It is immutable and refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    def changed(self, *keys: str) -> str | None:
        """The first of `keys` whose value is not its default; None if all are."""
        defaults = type(self).model_fields
        return next((key for key in keys if getattr(self, key) != defaults[key].default), None)
