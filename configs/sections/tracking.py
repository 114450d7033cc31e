"""The section `tracking`: Weights & Biases."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from configs.sections.values import Count, Section, Text


class Tracking(Section):
    """Weights & Biases. Metrics also always go to files. The variable WANDB_MODE overrides `wandb`."""

    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto: online if an API key is known, else offline"
    )
    project: Text = "tristage"
    entity: Text | None = None
    group: Text | None = Field(None, description="default: the experiment's name")
    tags: list[Text] = Field([])
    artifacts: bool = Field(True, description="upload adapters as artifacts")
    sample_rows: Count = Field(4, description="samples recorded at each logging step")
