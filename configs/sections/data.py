"""The section `data`: the sources of examples, and how text becomes tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from configs.sections.values import Count, Fraction, NonNegative, Number, Section, Size, Text
from configs.stage_names import Stage, data_stage

DATA_FILES = (".jsonl", ".json", ".parquet")  # a source path with another ending names a hub dataset


class Source(Section):
    """Where a stage's examples come from: a JSONL, JSON or Parquet file, or a hub dataset."""

    path: Text = Field(description="a .jsonl, .json or .parquet file, or the id of a hub dataset")
    name: Text | None = Field(None, description="configuration of a hub dataset or folder")
    split: Text = Field("train", description="split of a hub dataset or folder")
    revision: Text | None = Field(None, description="branch, tag or commit of a hub dataset")
    limit: Count | None = Field(
        None, description="maximum number of rows to use, held-out ones included, of the stage's own prompts"
    )
    ignore_columns: tuple[Text, ...] = Field(
        (), description="keys of rows and messages to ignore; other keys that no format uses are refused"
    )
    min_rating: Number | None = Field(
        None,
        description="of data.sft: rows with a `rating` below it are left out, and each row must have one",
    )
    held_out: NonNegative = Field(
        0.1, description="prompts kept for evaluation: below 1 a share, from 1 on a number"
    )

    @property
    def identity(self) -> tuple[str | None, ...]:
        """Two sources are the same source if these values are equal."""
        return self.path, self.name, self.split, self.revision

    @model_validator(mode="after")
    def _a_file_is_no_data_set(self) -> Source:
        is_file = self.path.lower().endswith(DATA_FILES)
        if is_file and (key := self.changed("name", "split", "revision")):
            raise ValueError(f"{key} is of hub datasets and folders, and the path is a file; leave it out")
        return self

    @model_validator(mode="after")
    def _whole_prompts(self) -> Source:
        if self.held_out > 1 and self.held_out % 1:
            raise ValueError(
                f"held_out ({self.held_out:g}) must be a share below 1 or a whole number of prompts"
            )
        return self


class Shares(Section):
    """Share of the prompts that each stage gets if several stages read the same source."""

    sft: Fraction = Field(0.2, description="share of SFT; 0 if it has another source")
    rm: Fraction = Field(0.4, description="share of the reward model")
    ppo: Fraction = Field(0.4, description="share of PPO, and of best-of-n")

    def of(self, stage: Stage) -> float:
        share: float = getattr(self, data_stage(stage))
        return share

    @model_validator(mode="after")
    def _at_most_everything(self) -> Shares:
        if self.sft + self.rm + self.ppo > 1 + 1e-9:
            raise ValueError("the three shares must add up to at most 1")
        return self


class Data(Section):
    """The sources of the three stages, and how text becomes tokens."""

    sft: Source
    rm: Source
    ppo: Source
    shares: Shares = Shares()
    max_length: Size = Field(1024, description="maximum tokens of prompt and response together")
    max_prompt_length: Size = Field(512, description="maximum tokens of the prompt")
    overlong: Literal["drop", "truncate"] = Field(
        "drop", description="what happens to an example that exceeds one of the two limits"
    )
    train_on: Literal["all", "last"] = Field(
        "all", description="the assistant turns of a conversation that SFT learns: all, or the last one"
    )
    chat: bool = Field(False, description="treat plain strings as user and assistant turns of a chat")
    chat_template: Text | None = Field(
        None,
        description="a Jinja file that replaces the tokenizer's template (both, if rm.base has its own)",
    )

    def source(self, stage: Stage) -> Source:
        """The source that `stage` reads."""
        source: Source = getattr(self, data_stage(stage))
        return source

    @model_validator(mode="after")
    def _only_demonstrations_are_rated(self) -> Data:
        for stage in ("rm", "ppo"):
            if self.source(stage).min_rating is not None:
                raise ValueError(f"{stage}.min_rating: only sft learns rated answers; leave it out")
        return self

    @model_validator(mode="after")
    def _prompt_leaves_room(self) -> Data:
        if self.max_prompt_length >= self.max_length:
            raise ValueError("max_prompt_length must be below max_length to leave room for a response")
        return self
