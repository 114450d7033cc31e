"""The values that keys may take, and the base class of every section."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError


def _no_truth(value: Any) -> Any:
    """Python takes true for 1, and YAML takes `yes` and `on` for true."""
    if isinstance(value, bool):
        raise PydanticCustomError("truth_for_number", "true or false in place of a number")
    return value


def _legible(text: str) -> str:
    """Text that file names, terminals and W&B can hold."""
    if not text:
        raise ValueError("'' is empty; write some text, or leave the key out")
    if any(letter < " " or letter == "\x7f" or "\ud800" <= letter <= "\udfff" for letter in text):
        what = "a control character or half of a surrogate pair"
        raise ValueError(f"{text!r:.60} holds {what}; write plain text")
    return text


def no_secret_in_url(source: str) -> str:
    """Configurations are written down, sent to W&B and shown."""
    if "://" in source:
        parts = urlsplit(source)
        if "@" in parts.netloc:
            raise ValueError("a URL with a user's name or password in it; give a token by key_variable")
        if parts.query:
            raise ValueError("a URL with a query, which may be a key; give a token by key_variable")
    return source


Text = Annotated[str, AfterValidator(_legible)]
NoTruth = BeforeValidator(_no_truth)  # last, so that the bounds before it are part of the JSON schema
Function = Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]  # module:function
Count = Annotated[int, Field(ge=1), NoTruth]
Positive = Annotated[float, Field(gt=0), NoTruth]
NonNegative = Annotated[float, Field(ge=0), NoTruth]
Fraction = Annotated[float, Field(ge=0, le=1), NoTruth]
BelowOne = Annotated[float, Field(ge=0, lt=1), NoTruth]
Seed = Annotated[int, Field(ge=0), NoTruth]
LearningRate = Annotated[float, Field(gt=0, le=1), NoTruth]  # 1e4 for 1e-4 is found here, not in a NaN


class Section(BaseModel):
    """A section of the configuration: immutable, and closed to keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
