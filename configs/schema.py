"""What an experiment may say. One pydantic model per section of the YAML; this module imports no torch.

Sizes that change the algorithm are global (`batch_size`); sizes that only change speed or memory are
per rank (`micro_batch_size`).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic_core import PydanticCustomError

Stage = Literal["sft", "rm", "ppo", "best"]
STAGES: tuple[Stage, ...] = ("sft", "rm", "ppo")  # one after another
ALL_STAGES: tuple[Stage, ...] = (*STAGES, "best")  # best-of-n, beside PPO and on its prompts
VLLM_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # it sets memory aside for one of these


def reads(stage: Stage) -> Stage:
    """The stage whose part of `data` this one reads."""
    return "ppo" if stage == "best" else stage


def _no_truth(value: Any) -> Any:
    """Python takes true for 1, and YAML takes `yes` and `on` for true."""
    if isinstance(value, bool):
        raise PydanticCustomError("truth_for_number", "true or false in place of a number")
    return value


def _legible(text: str) -> str:
    """Text that file names, terminals and W&B can hold."""
    if not text:
        raise ValueError("'' is empty; write some text, or leave the key out")
    if any(letter < " " or letter == "\x7f" or "\ud800" <= letter <= "\udfff" for letter in text):
        what = "a control character or half of a surrogate pair"
        raise ValueError(f"{text!r:.60} holds {what}; write plain text")
    return text


def _without_password(source: str) -> str:
    """Configurations are written down, sent to W&B and shown."""
    if "://" in source:
        parts = urlsplit(source)
        if "@" in parts.netloc:
            raise ValueError("a URL with a user's name or password in it; give a token by key_variable")
        if parts.query:
            raise ValueError("a URL with a query, which may be a key; give a token by key_variable")
    return source


Text = Annotated[str, AfterValidator(_legible)]
NoTruth = BeforeValidator(_no_truth)  # last, so that the bounds before it are part of the JSON schema
Function = Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]  # module:function
Count = Annotated[int, Field(ge=1), NoTruth]
Positive = Annotated[float, Field(gt=0), NoTruth]
NonNegative = Annotated[float, Field(ge=0), NoTruth]
Fraction = Annotated[float, Field(ge=0, le=1), NoTruth]
BelowOne = Annotated[float, Field(ge=0, lt=1), NoTruth]
Seed = Annotated[int, Field(ge=0), NoTruth]
LearningRate = Annotated[float, Field(gt=0, le=1), NoTruth]  # 1e4 for 1e-4 is found here, not in a NaN


class Section(BaseModel):
    """A section of the configuration: immutable, and closed to keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class Base(Section):
    """The frozen language model under all adapters (QLoRA, Dettmers et al. 2023)."""

    key: ClassVar = "base"

    model: Text = Field(description="embedded model name, local folder, or hub id")
    revision: Text | None = None
    quantization: Literal["nf4", "int8", "none"] = "nf4"
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False


class RewardBase(Base):
    """A base of the reward model's own (as InstructGPT's 6B reward model for a 175B policy)."""

    key: ClassVar = "rm.base"


class Adapter(Section):
    """LoRA (Hu et al. 2021): the update of a weight is `alpha / r * B @ A`."""

    r: Count = 16
    alpha: Positive = 32.0
    dropout: BelowOne = 0.0
    target_modules: Literal["all-linear"] | Annotated[list[Text], Field(min_length=1)] = "all-linear"


class Source(Section):
    """Where a stage's examples come from: a JSONL, JSON or Parquet file, or a hub dataset."""

    path: Text
    name: Text | None = Field(None, description="configuration of a hub dataset")
    split: Text = "train"
    revision: Text | None = None
    limit: Count | None = Field(None, description="use at most so many rows")
    held_out: NonNegative = Field(
        0.1, description="prompts kept for evaluation: a share below 1, a number from 1 on"
    )

    @property
    def identity(self) -> tuple[str | None, ...]:
        """What makes two sources one and the same."""
        return self.path, self.name, self.split, self.revision

    @model_validator(mode="after")
    def _whole_prompts(self) -> Source:
        if self.held_out > 1 and self.held_out % 1:
            raise ValueError(
                f"held_out ({self.held_out:g}) must be a share below 1 or a whole number of prompts"
            )
        return self


class Shares(Section):
    """Shares of the prompts that each stage gets where stages read one and the same source."""

    sft: Fraction = 0.2
    rm: Fraction = 0.4
    ppo: Fraction = 0.4

    def of(self, stage: Stage) -> float:
        share: float = getattr(self, reads(stage))
        return share

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
    chat_template: Text | None = Field(
        None, description="a Jinja file, in place of the tokenizer's (of both, where rm.base has another)"
    )

    def source(self, stage: Stage) -> Source:
        """What `stage` reads."""
        source: Source = getattr(self, reads(stage))
        return source

    @model_validator(mode="after")
    def _prompt_leaves_room(self) -> Data:
        if self.max_prompt_length >= self.max_length:
            raise ValueError("max_prompt_length must be below max_length, or no room is left for a response")
        return self


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


class Reward(Section):
    """One term of the reward; the terms are added up with their weights."""

    source: Annotated[str, AfterValidator(_without_password)] = Field(
        "rm",
        pattern=r"^(rm|https?://.+|[\w.]+:\w+)$",
        description="rm, a Python function `module:function`, which is imported, or the URL of an endpoint",
    )
    weight: float = 1.0
    name: str | None = Field(None, description="in metrics; default: rm, the function's name or the host")
    timeout_seconds: Positive = Field(30.0, description="of one request to an endpoint")
    retries: Annotated[int, Field(ge=0)] = Field(5, description="of a request that fails, ever further apart")
    key_variable: str | None = Field(
        None, description="environment variable with the endpoint's bearer token"
    )


class Ppo(Training):
    """PPO against the reward model (Schulman et al. 2017; Ouyang et al. 2022, equation 2)."""

    learning_rate: LearningRate = 1e-5
    critic_learning_rate: LearningRate | None = Field(None, description="default: learning_rate")
    scheduler: Literal["linear", "cosine", "constant"] = "constant"
    iterations: Count = Field(100, description="rollouts of batch_size prompts, each followed by updates")
    epochs: Count = Field(2, description="passes over each rollout")
    minibatches: Count = Field(1, description="optimizer steps per pass; divides batch_size")
    rollout: Rollout = Rollout()
    kl_coef: NonNegative = Field(0.05, description="beta; with kl_target, what it starts from")
    kl_target: Positive | None = Field(
        None, description="nats per response that an adaptive kl_coef keeps the KL at"
    )
    kl_horizon: Positive = Field(10_000.0, description="responses over which an adaptive kl_coef settles")
    kl_estimator: Literal["k1", "k3"] = Field(
        "k1", description="per token; k3 is for kl_in: loss, in the reward it hardly holds a policy back"
    )
    max_kl: Positive | None = Field(
        None, description="nats per response: a rollout above it ends the run with the policy before it"
    )
    kl_in: Literal["reward", "loss"] = Field("reward", description="where the KL penalty goes")
    rewards: Annotated[list[Reward], Field(min_length=1)] = [Reward()]
    normalize_rewards: bool = Field(False, description="by the running mean and standard deviation")
    clip_reward: Positive | None = Field(None, description="keep a response's reward within +- this")
    length_penalty: NonNegative = Field(0.0, description="taken from the score for each response token")
    whiten_rewards: bool = Field(False, description="scale rewards, KL penalty included, to deviation 1")
    whiten_advantages: bool = True
    gamma: Fraction = 1.0
    lam: Fraction = 0.95
    clip_range: Positive = 0.2
    old_logprobs: Literal["auto", "recomputed"] = Field(
        "auto",
        description="of ratio and KL. recomputed: by the model that trains; auto: as they were sampled, a "
        "forward less, where that is the same to the rounding of fp32 (compute dtype float32, base not int8, "
        "engine not vllm), and where no shared critic needs that forward; else recomputed",
    )
    clip_range_value: Positive | None = Field(0.2, description="null: values are not clipped")
    dual_clip: Annotated[float, Field(gt=1)] | None = Field(
        None, description="bound on the ratio where the advantage is negative"
    )
    critic: Literal["adapter", "shared"] = Field(
        "adapter",
        description="adapter: a role of its own, from the reward model; shared: a head on the policy (a new "
        "one with rm.base)",
    )
    vf_coef: NonNegative = 0.1
    entropy_coef: NonNegative = Field(0.0, description="entropy bonus in the policy's loss")
    ptx_coef: NonNegative = Field(
        0.0, description="PPO-ptx: weight of the demonstrations' loss in each update"
    )
    ptx_batch_size: Count | None = Field(
        None, description="global: demonstrations per update; default: responses per update"
    )
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="keep a moving average of the policy over iterations, in adapter-ema"
    )
    use_ema: bool = Field(False, description="make the average the result; the policy goes to adapter-last")
    critic_warmup: Annotated[int, Field(ge=0)] = Field(
        0, description="iterations at the beginning that train the critic alone"
    )
    max_approxkl: Positive | None = Field(
        None, description="end a rollout's updates once policy/approxkl is above this"
    )
    missing_eos_penalty: NonNegative | None = Field(
        1.0, description="taken from the score of a response that never ended its turn"
    )
    judge: Literal["warmth"] | Function | None = Field(
        None, description="gold judge on held-out prompts, never optimised; a labeller, as in rm.rankings"
    )

    @model_validator(mode="after")
    def _minibatches_divide(self) -> Ppo:
        if self.batch_size % self.minibatches:
            raise ValueError(f"minibatches ({self.minibatches}) must divide batch_size ({self.batch_size})")
        return self

    @model_validator(mode="after")
    def _options_go_together(self) -> Ppo:
        if self.kl_target and not self.kl_coef:
            raise ValueError("kl_target adapts kl_coef by factors, so kl_coef must not start at 0")
        if self.kl_target and self.batch_size >= 5 * self.kl_horizon:
            raise ValueError(
                f"kl_horizon ({self.kl_horizon:g}) must be above a fifth of batch_size ({self.batch_size}), "
                "or kl_coef could turn negative"
            )
        if self.use_ema and self.ema_decay is None:
            raise ValueError("use_ema needs ema_decay, such as 0.9")
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                "kl_in: loss needs kl_estimator: k3, as the gradient of k1 has mean 0 whatever the KL"
            )
        return self


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
    tags: list[Text] = []
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


UPSTREAM: dict[Stage, tuple[Stage, ...]] = {
    "sft": (),
    "rm": ("sft",),
    "ppo": ("sft", "rm"),
    "best": ("sft", "rm"),
}
