"""The stages, their order, and what each one starts from."""

from __future__ import annotations

from typing import Literal

Stage = Literal["sft", "rm", "ppo", "best"]
STAGES: tuple[Stage, ...] = ("sft", "rm", "ppo")  # one after another
ALL_STAGES: tuple[Stage, ...] = (*STAGES, "best")  # best-of-n, beside PPO and on its prompts
UPSTREAM: dict[Stage, tuple[Stage, ...]] = {
    "sft": (),
    "rm": ("sft",),
    "ppo": ("sft", "rm"),
    "best": ("sft", "rm"),
}


def data_stage(stage: Stage) -> Stage:
    """The stage whose part of `data` this one reads."""
    return "ppo" if stage == "best" else stage
