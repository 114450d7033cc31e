"""The sections `base`, `rm.base` and `adapter`: the frozen model and the LoRA adapters on it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from configs.sections.values import BelowOne, PlainNumber, Positive, Section, Text


class Base(Section):
    """The frozen language model under all adapters (QLoRA, Dettmers et al. 2023)."""

    key: ClassVar = "base"

    model: Text = Field(description="embedded model name, local folder, or hub id")
    revision: Text | None = Field(None, description="branch, tag or commit on the hub")
    quantization: Literal["nf4", "int8", "none"] = Field(
        "nf4",
        description="of the frozen weights: nf4 is 4 bits, the smallest; int8 is twice that; none keeps "
        "compute_dtype",
    )
    compute_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 if the hardware multiplies it, else float32"
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "sdpa",
        description="sdpa: torch's fused kernels; eager: plain products, for bases without sdpa; "
        "flash_attention_2: the package flash-attn, on GPUs",
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, more time")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")


class RewardBase(Base):
    """A separate base for the reward model (InstructGPT: a 6B reward model for a 175B policy)."""

    key: ClassVar = "rm.base"


class Adapter(Section):
    """LoRA (Hu et al. 2021): the update of a weight is `alpha / r * B @ A`; with `rslora`, `alpha / √r`."""

    r: Annotated[int, Field(ge=1, le=16_384), PlainNumber] = Field(
        16, description="rank of A and B; a higher one fits more and takes more memory"
    )
    alpha: Positive = Field(32.0, description="scale of the update; twice r is usual")
    rslora: bool = Field(
        False, description="divide by the root of r in place of r, so that high ranks learn as fast"
    )
    dora: bool = Field(
        False,
        description="train the length of each row of a weight beside its direction (DoRA): closer to full "
        "fine-tuning at low ranks, and slower",
    )
    init: Literal["zero", "loftq"] = Field(
        "zero",
        description="what a new adapter starts as. zero: the quantized base; loftq: the closest to the base "
        "before quantization, whose weights it reads once",
    )
    dropout: BelowOne = Field(
        0.0, description="share of the adapter's inputs set to 0 in SFT and RM; try 0.05 if they overfit"
    )
    target_modules: Literal["all-linear"] | Annotated[list[Text], Field(min_length=1)] = Field(
        "all-linear", description="names of the linear layers that get an adapter"
    )
