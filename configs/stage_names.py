"""The stages, their order, and the stages that each one starts from."""

from __future__ import annotations

from typing import Literal

Stage = Literal["sft", "rm", "ppo", "best"]
STAGES: tuple[Stage, ...] = ("sft", "rm", "ppo")  # trained in this order
ALL_STAGES: tuple[Stage, ...] = (*STAGES, "best")  # best-of-n: beside PPO, on its prompts
# PPO needs no rm in some experiments: see `Experiment.upstream`.
UPSTREAM: dict[Stage, tuple[Stage, ...]] = {
    "sft": (),
    "rm": ("sft",),
    "ppo": ("sft", "rm"),
    "best": ("sft", "rm"),
}


def data_stage(stage: Stage) -> Stage:
    """The stage whose section of `data` this stage reads."""
    return "ppo" if stage == "best" else stage
