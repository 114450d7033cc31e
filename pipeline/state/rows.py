"""The rows of a stage's JSONL files, and a check that their values have the types that the report reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from configs.errors import UserError
from data.storage.files import read_json_lines

Row = dict[str, Any]
Number = float | None  # null stands for NaN


class _Row(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class MetricRow(_Row):
    """A step of `metrics.jsonl`: all other keys are metrics."""

    __pydantic_extra__: dict[str, Number]
    step: int


class SampleRow(_Row):
    """A response of `samples.jsonl`."""

    step: int
    prompt: str
    response: str
    score: Number = None
    kl: Number = None


class EvaluationRow(_Row):
    """The answers of `evaluation.jsonl` to a held-out prompt."""

    prompt: str
    base: str
    sft: str
    ppo: str
    score_base: Number = None
    score_sft: Number = None
    score_ppo: Number = None
    gold_base: Number = None
    gold_sft: Number = None
    gold_ppo: Number = None
    kl: Number = None


class Message(_Row):
    content: str


class RankingRow(_Row):
    """A prompt of `rankings.jsonl` with its ranked answers."""

    prompt: str | Annotated[list[Message], Field(min_length=1)]
    completions: list[str]
    ranks: list[int]
    scores: list[Number] | None = None

    @model_validator(mode="after")
    def _one_for_each(self) -> RankingRow:
        if {len(self.ranks), len(self.scores or self.ranks)} != {len(self.completions)}:
            raise ValueError("there are not as many ranks or scores as completions")
        return self


class ScoredRankingRow(_Row):
    """A held-out ranking of `rm/evaluation.jsonl`, with a value of each kind for each answer."""

    prompt: str
    answers: list[str]
    ranks: list[int]
    rewards: list[float]
    lengths: list[int]
    nats: list[float]
    words: list[float]
    labels: list[float] | None
    source: str = ""
    key: str = ""

    @model_validator(mode="after")
    def _one_for_each(self) -> ScoredRankingRow:
        columns = (self.ranks, self.rewards, self.lengths, self.nats, self.words, self.labels or self.ranks)
        if {len(column) for column in columns} != {len(self.answers)}:
            raise ValueError("there is not one value of each kind for each answer")
        return self


class CurveRow(_Row):
    """The best of n: all other keys are scores and their intervals."""

    __pydantic_extra__: dict[str, Number]
    n: int
    kl: float
    rm_score: Number


def read_rows(path: Path, kind: type[_Row]) -> list[Row]:
    """The rows of a JSONL file that a stage may still be writing; empty if there is no file.

    Raises:
        UserError: a row is not a JSON object, or a value has not the type of its key.
    """
    if not path.exists():
        return []
    required = [name for name, field in kind.model_fields.items() if field.is_required()]
    rows = read_json_lines(path, required, growing=True)
    for number, row in enumerate(rows, 1):
        try:
            kind.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            fault = f"{'.'.join(map(str, first['loc'])):.60}: {first['msg']:.100}"
            raise UserError(f"{path}, line {number}: damaged ({fault}). Remove the line.") from None
    return rows
