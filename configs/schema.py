"""What an experiment may say: `Experiment`, and the one door to its sections. No torch is imported.

`configs/sections/` has a module for each section of the YAML. Other folders import every name from here.

Sizes that change the algorithm are global (`batch_size`). Sizes that only change speed or memory are
per rank (`micro_batch_size`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from configs.sections.base import Adapter, Base, RewardBase
from configs.sections.data import Data, Shares, Source
from configs.sections.ppo import Ppo, Reward
from configs.sections.rollout import VLLM_LORA_RANKS, Rollout, Vllm
from configs.sections.training import Epochs, Rankings, Rm, Sft, Training
from configs.sections.values import Count, NoTruth, Section, Seed, Text
from configs.stage_names import ALL_STAGES, STAGES, UPSTREAM, Stage, data_stage

__all__ = [
    "ALL_STAGES",
    "STAGES",
    "UPSTREAM",
    "VLLM_LORA_RANKS",
    "Adapter",
    "Base",
    "Best",
    "Data",
    "DeepSpeed",
    "Epochs",
    "Experiment",
    "Ppo",
    "Rankings",
    "Reward",
    "RewardBase",
    "Rm",
    "Rollout",
    "Section",
    "Sft",
    "Shares",
    "Source",
    "Stage",
    "Tracking",
    "Training",
    "Vllm",
    "data_stage",
]


class Best(Section):
    """Best-of-n on the prompts of PPO, sampled from the SFT policy (Stiennon et al. 2020)."""

    seed: Seed | None = Field(None, description="default: the experiment's")
    n: Annotated[int, Field(ge=2), NoTruth] = Field(16, description="answers per prompt")
    micro_batch_size: Count = Field(8, description="answers scored in one forward pass of one rank")
    rollout: Rollout | None = Field(None, description="default: that of ppo")


class Tracking(Section):
    """Weights & Biases, beside the files that are always written. WANDB_MODE overrides `wandb`."""

    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto: online where a key is known, else offline"
    )
    project: Text = "tristage"
    entity: Text | None = None
    group: Text | None = Field(None, description="default: the experiment's name")
    tags: list[Text] = Field([])
    artifacts: bool = True
    sample_rows: Count = Field(4, description="samples kept at each logging step")


class DeepSpeed(Section):
    """The engine. Batch sizes, clipping and precision are filled in from the stage's own section."""

    config: Text = Field("deepspeed/zero0.json", description="a DeepSpeed JSON")
    timeout_minutes: Annotated[float, Field(gt=0, le=525_600), NoTruth] = Field(
        30.0, description="a collective that hangs longer ends the job"
    )


class Experiment(Section):
    """One experiment: every stage reads the same bases, adapter and data, so stages cannot disagree."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Seed = 0
    base: Base
    adapter: Adapter = Adapter()
    data: Data
    sft: Sft = Sft()
    rm: Rm = Rm()
    ppo: Ppo = Ppo()
    best: Best = Best()
    tracking: Tracking = Tracking()
    deepspeed: DeepSpeed = DeepSpeed()

    def base_of(self, stage: Stage) -> Base:
        """What the adapter of `stage` belongs to."""
        return self.rm.base or self.base if stage == "rm" else self.base

    def bases(self, stage: Stage) -> list[Base]:
        """What `stage` loads: the policy's base, and the reward model's where that has one of its own."""
        return [self.base] if stage == "sft" or self.rm.base is None else [self.base, self.rm.base]

    @property
    def rollouts(self) -> dict[Stage, tuple[str, Rollout]]:
        """How a stage that samples does, and the key that says so."""
        own, ppo = self.best.rollout, ("ppo.rollout", self.ppo.rollout)
        return {
            "rm": ("rm.rankings.rollout", self.rm.rankings.rollout),
            "ppo": ppo,
            "best": ("best.rollout", own) if own else ppo,
        }
