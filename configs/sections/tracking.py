"""The section `tracking`: Weights & Biases."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from configs.sections.values import Section, Size, Text

NAME = r"at most 128 letters, without any of / \ # ? % :"
Name = Annotated[Text, Field(max_length=128, pattern=r"^[^/\\#?%:]*$")]  # W&B refuses others, once it starts


class Tracking(Section):
    """Weights & Biases. Metrics also always go to files. The variable WANDB_MODE overrides `wandb`."""

    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto: online if an API key is known, else offline"
    )
    project: Name = Field("tristage", description=f"W&B project: {NAME}")
    entity: Name | None = Field(None, description=f"W&B user or team, default: your own; {NAME}")
    group: Annotated[Text, Field(max_length=128)] | None = Field(
        None, description="group of the runs in W&B, at most 128 letters; default: the experiment's name"
    )
    tags: list[Annotated[Text, Field(max_length=64)]] = Field(
        [], description="tags of the runs in W&B, at most 64 letters each"
    )
    artifacts: bool = Field(True, description="upload adapters to W&B as artifacts")
    sample_rows: Size = Field(4, description="samples recorded at each logging step")
