"""The sections called `rollout`: how a policy is sampled."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from configs.sections.values import Count, NoTruth, Positive, Section

VLLM_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # it sets memory aside for one of these


class Vllm(Section):
    """What the engine vllm takes of each GPU, for as long as the stage runs."""

    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1), NoTruth] = Field(
        0.3, description="share of a GPU's memory for vLLM's own copy of the base and its cache"
    )


class Rollout(Section):
    """How a policy is sampled. Log-probabilities are those of the distribution that was sampled from."""

    engine: Literal["auto", "hf", "merged", "continuous", "vllm"] = Field(
        "auto",
        description="hf: transformers' generate on the quantized base; merged: a dequantized copy with the "
        "adapter folded in, faster; continuous: on that copy, prompts that wait take the place of sequences "
        "that have ended; vllm: vLLM on a GPU (an extra); auto: continuous, or merged where the base does "
        "not allow it, if the copy fits in free memory, else hf",
    )
    vllm: Vllm = Vllm()
    max_new_tokens: Count = 128
    batch_size: Count = Field(32, description="sequences in flight together on one rank")
    temperature: Positive = 1.0
    top_k: Count | None = Field(None, description="sample from so many of the likeliest tokens")
    top_p: Annotated[float, Field(gt=0, le=1), NoTruth] = Field(
        1.0, description="sample from the likeliest tokens that together have this probability"
    )

    @property
    def truncates(self) -> bool:
        """Whether some tokens are left out."""
        return self.top_k is not None or self.top_p < 1
