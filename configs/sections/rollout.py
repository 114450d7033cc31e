"""The sections called `rollout`: how a policy is sampled."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from configs.sections.values import Count, NotBoolean, Positive, Section

VLLM_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM allocates memory for one of these ranks


class Vllm(Section):
    """GPU memory that the engine vllm holds while the stage runs."""

    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1), NotBoolean] = Field(
        0.3, description="share of a GPU's memory for vLLM's own copy of the base and its cache"
    )


class Rollout(Section):
    """How a policy is sampled. Its log-probabilities are those of the distribution that was sampled from."""

    engine: Literal["auto", "hf", "merged", "continuous", "vllm"] = Field(
        "auto",
        description="hf: transformers' generate on the quantized base; merged: a dequantized copy with the "
        "adapter folded in, which is faster; continuous: that copy with continuous batching; vllm: vLLM on a "
        "GPU (an extra); auto: continuous if the copy fits in free memory (merged if the base does not "
        "support continuous batching), else hf",
    )
    vllm: Vllm = Vllm()
    max_new_tokens: Count = Field(128, description="maximum tokens of a response")
    batch_size: Count = Field(32, description="sequences decoded together on one rank")
    temperature: Positive = 1.0
    top_k: Count | None = Field(None, description="sample from the k likeliest tokens")
    top_p: Annotated[float, Field(gt=0, le=1), NotBoolean] = Field(
        1.0, description="sample from the likeliest tokens whose probabilities sum to p"
    )

    @property
    def truncates(self) -> bool:
        """Whether top-k or top-p excludes tokens."""
        return self.top_k is not None or self.top_p < 1
