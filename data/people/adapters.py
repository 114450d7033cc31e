"""Which adapters gave the answers of an evaluation: a file beside them, for rounds that ask about them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ValidationError

from configs.regular_file import read_regular_file
from data.storage.files import sha256, write_text

FILE = "adapters.json"
Adapters = Mapping[str, str]  # SHA-256 of adapters, by the stage that trained them


class Record(BaseModel):
    """The content of the file.

    Attributes:
        answers: SHA-256 of the file of answers that it is about.
        adapters: of each candidate, those that its answers depend on.
    """

    answers: str
    adapters: dict[str, dict[str, str]]


def write_adapters(answers: Path, adapters: Mapping[str, Adapters]) -> None:
    """Write beside `answers` which adapters the answers of each candidate depend on."""
    record = {"answers": sha256(answers), "adapters": adapters}
    write_text(answers.with_name(FILE), json.dumps(record, indent=1) + "\n")


def read_adapters(answers: Path) -> Mapping[str, Adapters] | None:
    """The adapters of each candidate of `answers`; None if that file is not known, or has changed since."""
    try:
        record = Record.model_validate_json(read_regular_file(answers.with_name(FILE)))
        return record.adapters if record.answers == sha256(answers) else None
    except (OSError, ValidationError):
        return None
