"""The section `deepspeed`: the training engine."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from configs.sections.values import PlainNumber, Section, Text


class DeepSpeed(Section):
    """The training engine. Batch sizes, clipping and precision come from the stage's own section."""

    config: Text = Field("deepspeed/zero0.json", description="path of a DeepSpeed JSON")
    timeout_minutes: Annotated[float, Field(gt=0, le=525_600), PlainNumber] = Field(
        30.0, description="a collective that hangs longer ends the job"
    )
