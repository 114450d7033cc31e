"""The section `data`: sources of examples, and the rules by which text becomes tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from configs.sections.values import Count, Fraction, NonNegative, Section, Text
from configs.stage_names import Stage, data_stage


class Source(Section):
    """Where a stage's examples come from: a JSONL, JSON or Parquet file, or a hub dataset."""

    path: Text
    name: Text | None = Field(None, description="configuration of a hub dataset")
    split: Text = "train"
    revision: Text | None = None
    limit: Count | None = Field(None, description="use at most so many rows")
    held_out: NonNegative = Field(
        0.1, description="prompts kept for evaluation: a share below 1, a number from 1 on"
    )

    @property
    def identity(self) -> tuple[str | None, ...]:
        """What makes two sources one and the same."""
        return self.path, self.name, self.split, self.revision

    @model_validator(mode="after")
    def _whole_prompts(self) -> Source:
        if self.held_out > 1 and self.held_out % 1:
            raise ValueError(
                f"held_out ({self.held_out:g}) must be a share below 1 or a whole number of prompts"
            )
        return self


class Shares(Section):
    """Shares of the prompts that each stage gets where stages read one and the same source."""

    sft: Fraction = 0.2
    rm: Fraction = 0.4
    ppo: Fraction = 0.4

    def of(self, stage: Stage) -> float:
        share: float = getattr(self, data_stage(stage))
        return share

    @model_validator(mode="after")
    def _at_most_everything(self) -> Shares:
        if self.sft + self.rm + self.ppo > 1 + 1e-9:
            raise ValueError("the three shares must add up to at most 1")
        return self


class Data(Section):
    """Examples of the three stages, and the rules by which text becomes tokens."""

    sft: Source
    rm: Source
    ppo: Source
    shares: Shares = Shares()
    max_length: Count = Field(1024, description="tokens of prompt and response together")
    max_prompt_length: Count = Field(512, description="tokens of the prompt")
    overlong: Literal["drop", "truncate"] = "drop"
    chat: bool = Field(False, description="treat plain strings as user and assistant turns of a chat")
    chat_template: Text | None = Field(
        None, description="a Jinja file, in place of the tokenizer's (of both, where rm.base has another)"
    )

    def source(self, stage: Stage) -> Source:
        """What `stage` reads."""
        source: Source = getattr(self, data_stage(stage))
        return source

    @model_validator(mode="after")
    def _prompt_leaves_room(self) -> Data:
        if self.max_prompt_length >= self.max_length:
            raise ValueError("max_prompt_length must be below max_length, or no room is left for a response")
        return self
