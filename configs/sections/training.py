"""What all training stages share, and the sections `sft` and `rm`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs.sections.base import RewardBase
from configs.sections.rollout import Rollout
from configs.sections.values import (
    BelowOne,
    Count,
    Fraction,
    Function,
    LearningRate,
    NonNegative,
    NoTruth,
    Positive,
    Section,
    Seed,
)


class Training(Section):
    """What the three stages share: AdamW, its schedule, batch arithmetic, and when to log and save."""

    learning_rate: LearningRate = 1e-4
    scheduler: Literal["linear", "cosine", "constant"] = "cosine"
    warmup_ratio: Fraction = 0.03
    weight_decay: NonNegative = 0.0
    adam_beta1: BelowOne = 0.9
    adam_beta2: BelowOne = 0.999
    adam_epsilon: Positive = 1e-8
    max_grad_norm: NonNegative = Field(1.0, description="0 turns clipping off")
    max_skipped_updates: Count = Field(
        10, description="stop after so many updates in a row whose gradient is not finite"
    )
    batch_size: Count = Field(64, description="global: sequences (sft), prompts (rm, ppo) per step")
    micro_batch_size: Count = Field(8, description="sequences in one forward pass of one rank")
    logging_steps: Count = 1
    eval_steps: Count | None = Field(None, description="evaluate every so many steps, besides the end")
    save_steps: Count = 50
    keep_checkpoints: Count = Field(
        2, description="the latest so many, besides the best of those that were evaluated"
    )
    seed: Seed | None = Field(None, description="of this stage's noise and order; default: the experiment's")


class Epochs(Training):
    """A stage that walks over a data set."""

    epochs: Annotated[float, Field(gt=0, le=100_000), NoTruth] = 1.0
    max_steps: Count | None = Field(None, description="stop here, whatever `epochs` says")
    use_best: bool = Field(
        False, description="the result is the checkpoint with the lowest held-out loss, not the last"
    )

    @model_validator(mode="after")
    def _evaluated_checkpoints(self) -> Epochs:
        if self.use_best and (self.eval_steps is None or self.eval_steps % self.save_steps):
            raise ValueError(
                f"use_best chooses among evaluated checkpoints: eval_steps ({self.eval_steps}) must "
                f"be a multiple of save_steps ({self.save_steps})"
            )
        return self


class Sft(Epochs):
    """Supervised fine-tuning on demonstrations (Ouyang et al. 2022, section 3.5)."""

    packing: bool = False


class Rankings(Section):
    """InstructGPT's step 2: sample answers of the SFT policy and have a labeller rank them."""

    labeller: Literal["file", "warmth"] | Function = Field(
        "file",
        description="warmth, or a Python function `module:function`; file: data.rm holds rankings already",
    )
    completions: Annotated[int, Field(ge=2), NoTruth] = Field(
        4, description="K, the answers to rank per prompt"
    )
    rollout: Rollout = Rollout()


class Rm(Epochs):
    """Reward model on rankings (Ouyang et al. 2022, equation 1)."""

    base: RewardBase | None = Field(
        None, description="a base of the reward model's own, and of PPO's critic; default: the experiment's"
    )
    rankings: Rankings = Rankings()
    normalization_prompts: Count = Field(
        64, description="held-out prompts whose SFT samples get mean 0 and standard deviation 1"
    )
