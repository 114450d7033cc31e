"""The sections called `rollout`: how a policy is sampled."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from configs.sections.values import PlainNumber, Section, Size

VLLM_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM allocates memory for one of these ranks
# Usual names of embeddings and LM head, which get no adapter in vLLM. A stage asks its base for the names.
EMBEDDINGS = ("embed_tokens", "lm_head")


def vllm_lora_rank(rank: int) -> int:
    """The least of vLLM's ranks that holds an adapter of `rank`."""
    return min(allowed for allowed in VLLM_LORA_RANKS if allowed >= rank)


class Vllm(Section):
    """How the engine vllm runs."""

    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1), PlainNumber] = Field(
        0.3, description="share of the device's memory for vLLM's own copy of the base and its cache"
    )
    enforce_eager: bool = Field(
        False, description="no compilation, no CUDA graphs: vLLM starts sooner and samples more slowly"
    )


class Rollout(Section):
    """How a policy is sampled. Its log-probabilities are those of the distribution that was sampled from."""

    engine: Literal["auto", "hf", "merged", "continuous", "vllm"] = Field(
        "auto",
        description="hf: transformers' generate on the quantized base; merged: a dequantized copy with the "
        "adapter folded in, which is faster; continuous: that copy with continuous batching; vllm: vLLM "
        "(an extra); auto: continuous if the copy fits in free memory (merged if the base does not "
        "support continuous batching), else hf",
    )
    vllm: Vllm = Vllm()
    max_new_tokens: Size = Field(128, description="maximum tokens of a response")
    batch_size: Size = Field(32, description="sequences decoded together on one rank")
    temperature: Annotated[float, Field(gt=0, le=100), PlainNumber] = Field(
        1.0, description="divides the logits; below 1, likely tokens become likelier and answers tamer"
    )
    top_k: Size | None = Field(None, description="sample from the k likeliest tokens; default: from all")
    top_p: Annotated[float, Field(gt=0, le=1), PlainNumber] = Field(
        1.0, description="sample from the likeliest tokens whose probabilities sum to p"
    )

    @property
    def truncates(self) -> bool:
        """Whether top-k or top-p excludes tokens."""
        return self.top_k is not None or self.top_p < 1
