"""The section `best`: best-of-n."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from configs.sections.rollout import Rollout
from configs.sections.values import PlainNumber, Section, Seed, Size


class Best(Section):
    """Best-of-n on the prompts of PPO, sampled from the SFT policy (Stiennon et al. 2020)."""

    seed: Seed | None = Field(None, description="seed of the samples; default: the experiment's")
    n: Annotated[int, Field(ge=2, le=65_536), PlainNumber] = Field(16, description="answers per prompt")
    micro_batch_size: Size = Field(8, description="answers scored in one forward pass of one rank")
    rollout: Rollout | None = Field(None, description="default: ppo.rollout")
