"""The section `ppo`: PPO, and the terms of its reward."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from configs.sections.rollout import Rollout
from configs.sections.training import Training
from configs.sections.values import (
    Count,
    Fraction,
    Function,
    LearningRate,
    NonNegative,
    Positive,
    Section,
    no_secret_in_url,
)


class Reward(Section):
    """One term of the reward; the terms are added up with their weights."""

    source: Annotated[str, AfterValidator(no_secret_in_url)] = Field(
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
    rewards: Annotated[list[Reward], Field(min_length=1)] = Field([Reward()])
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
