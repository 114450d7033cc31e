"""What an experiment may say. One pydantic model per section of the YAML; this module imports no torch.

Sizes that change the algorithm are global (`batch_size`); sizes that only change speed or memory are
per rank (`micro_batch_size`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Stage = Literal["sft", "rm", "ppo"]
STAGES: tuple[Stage, ...] = ("sft", "rm", "ppo")

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A section of the configuration: immutable, and closed to keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class Base(Section):
    """The frozen language model under all adapters (QLoRA, Dettmers et al. 2023)."""

    model: str = Field(description="embedded model name, local folder, or hub id")
    revision: str | None = None
    quantization: Literal["nf4", "int8", "none"] = "nf4"
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False


class Adapter(Section):
    """LoRA (Hu et al. 2021): the update of a weight is `alpha / r * B @ A`."""

    r: Count = 16
    alpha: Positive = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"


class Source(Section):
    """Where a stage's examples come from: a JSONL, JSON or Parquet file, or a hub dataset."""

    path: str
    name: str | None = Field(None, description="configuration of a hub dataset")
    split: str = "train"
    revision: str | None = None
    limit: Count | None = Field(None, description="use at most so many rows")
    held_out: Annotated[float, Field(ge=0)] = Field(
        0.1, description="prompts kept for evaluation: a share below 1, a number from 1 on"
    )


class Shares(Section):
    """Shares of the prompts that each stage gets where stages read one and the same source."""

    sft: Fraction = 0.2
    rm: Fraction = 0.4
    ppo: Fraction = 0.4

    @model_validator(mode="after")
    def _at_most_everything(self) -> Shares:
        if self.sft + self.rm + self.ppo > 1 + 1e-9:
            raise ValueError("the three shares must add up to at most 1")
        return self


class Data(Section):
    """Examples of the three stages, and the rules by which text becomes tokens."""

    sft: Source
    rm: Source
    ppo: Source
    shares: Shares = Shares()
    max_length: Count = Field(1024, description="tokens of prompt and response together")
    max_prompt_length: Count = Field(512, description="tokens of the prompt")
    overlong: Literal["drop", "truncate"] = "drop"
    chat: bool = Field(False, description="treat plain strings as user and assistant turns of a chat")
    chat_template: str | None = Field(None, description="a Jinja file, in place of the tokenizer's")

    @model_validator(mode="after")
    def _prompt_leaves_room(self) -> Data:
        if self.max_prompt_length >= self.max_length:
            raise ValueError("max_prompt_length must be below max_length, or no room is left for a response")
        return self


class Training(Section):
    """What the three stages share: AdamW, its schedule, batch arithmetic, and when to log and save."""

    learning_rate: Positive = 1e-4
    scheduler: Literal["linear", "cosine", "constant"] = "cosine"
    warmup_ratio: Fraction = 0.03
    weight_decay: NonNegative = 0.0
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    adam_epsilon: Positive = 1e-8
    max_grad_norm: NonNegative = Field(1.0, description="0 turns clipping off")
    batch_size: Count = Field(64, description="global: sequences (sft), prompts (rm, ppo) per step")
    micro_batch_size: Count = Field(8, description="sequences in one forward pass of one rank")
    logging_steps: Count = 1
    eval_steps: Count | None = Field(None, description="evaluate every so many steps, besides the end")
    save_steps: Count = 50
    keep_checkpoints: Count = 2


class Epochs(Training):
    """A stage that walks over a data set."""

    epochs: Positive = 1.0
    max_steps: Count | None = Field(None, description="stop here, whatever `epochs` says")


class Sft(Epochs):
    """Supervised fine-tuning on demonstrations (Ouyang et al. 2022, section 3.5)."""

    packing: bool = False


class Rollout(Section):
    """How a policy is sampled: temperature 1, the whole vocabulary."""

    engine: Literal["auto", "hf", "merged"] = Field(
        "auto",
        description="hf: transformers' generate on the quantized base; merged: a dequantized copy with the "
        "adapter folded in, faster; auto: merged where the copy fits in free memory",
    )
    max_new_tokens: Count = 128
    batch_size: Count = Field(32, description="sequences sampled together on one rank")


class Rankings(Section):
    """InstructGPT's step 2: sample answers of the SFT policy and have a labeller rank them."""

    labeller: Literal["file", "warmth"] = Field("file", description="file: data.rm holds rankings already")
    completions: Annotated[int, Field(ge=2)] = Field(4, description="K, the answers to rank per prompt")
    rollout: Rollout = Rollout()


class Rm(Epochs):
    """Reward model on rankings (Ouyang et al. 2022, equation 1)."""

    rankings: Rankings = Rankings()
    normalization_prompts: Count = Field(
        64, description="held-out prompts whose SFT samples get mean 0 and standard deviation 1"
    )


class Ppo(Training):
    """PPO against the reward model (Schulman et al. 2017; Ouyang et al. 2022, equation 2)."""

    learning_rate: Positive = 1e-5
    critic_learning_rate: Positive | None = Field(None, description="default: learning_rate")
    scheduler: Literal["linear", "cosine", "constant"] = "constant"
    iterations: Count = Field(100, description="rollouts of batch_size prompts, each followed by updates")
    epochs: Count = Field(2, description="passes over each rollout")
    minibatches: Count = Field(1, description="optimizer steps per pass; divides batch_size")
    rollout: Rollout = Rollout()
    kl_coef: NonNegative = 0.05
    gamma: Fraction = 1.0
    lam: Fraction = 0.95
    clip_range: Positive = 0.2
    clip_range_value: Positive = 0.2
    vf_coef: NonNegative = 0.1
    missing_eos_penalty: NonNegative | None = Field(
        1.0, description="taken from the score of a response that never ended its turn"
    )
    judge: Literal["warmth"] | None = Field(
        None, description="gold judge on held-out prompts, never optimised"
    )

    @model_validator(mode="after")
    def _minibatches_divide(self) -> Ppo:
        if self.batch_size % self.minibatches:
            raise ValueError(f"minibatches ({self.minibatches}) must divide batch_size ({self.batch_size})")
        return self


class Tracking(Section):
    """Weights & Biases, beside the files that are always written. WANDB_MODE overrides `wandb`."""

    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto: online where a key is known, else offline"
    )
    project: str = "tristage"
    entity: str | None = None
    group: str | None = Field(None, description="default: the experiment's name")
    tags: list[str] = []
    artifacts: bool = True
    sample_rows: Count = Field(4, description="samples kept at each logging step")


class DeepSpeed(Section):
    """The engine. Batch sizes, clipping and precision are filled in from the stage's own section."""

    config: str = Field("deepspeed/zero0.json", description="a DeepSpeed JSON")
    timeout_minutes: Positive = Field(30.0, description="a collective that hangs longer ends the job")


class Experiment(Section):
    """One experiment: every stage reads the same base, adapter and data, so stages cannot disagree."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Annotated[int, Field(ge=0)] = 0
    base: Base
    adapter: Adapter = Adapter()
    data: Data
    sft: Sft = Sft()
    rm: Rm = Rm()
    ppo: Ppo = Ppo()
    tracking: Tracking = Tracking()
    deepspeed: DeepSpeed = DeepSpeed()
