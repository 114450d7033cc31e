"""The section `ppo`, and the terms of its reward."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from configs.sections.rollout import Rollout
from configs.sections.training import Training
from configs.sections.values import (
    Count,
    Fraction,
    Function,
    LearningRate,
    NonNegative,
    PlainNumber,
    Positive,
    Section,
    Size,
    Text,
    plain_url,
    variable_name,
)

RM = "rm"  # the source of a reward that is the reward model


class Reward(Section):
    """One term of the reward. The reward is the weighted sum of its terms."""

    source: Annotated[str, AfterValidator(plain_url)] = Field(
        "rm",
        pattern=r"^(rm|https?://.+|[\w.]+:\w+)$",
        description="rm; a Python function `module:function`, which is imported; or the URL of an endpoint",
    )
    weight: Annotated[float, Field(ge=-1e9, le=1e9), PlainNumber] = Field(
        1.0, description="the term counts this many times; a negative weight punishes what it measures"
    )
    name: Annotated[Text, Field(max_length=64, pattern=r"^[^/]*$")] | None = Field(
        None,
        description="its name in metrics, at most 64 letters, no /; default: rm, the function or the host",
    )
    timeout_seconds: Annotated[float, Field(gt=0, le=86_400), PlainNumber] = Field(
        30.0, description="limit of one request to an endpoint, from its start to the last byte of its answer"
    )
    retries: Annotated[int, Field(ge=0, le=1000), PlainNumber] = Field(
        5, description="of a failed request, with exponential backoff"
    )
    key_variable: Annotated[str, AfterValidator(variable_name)] | None = Field(
        None, description="environment variable that holds the endpoint's bearer token"
    )

    @model_validator(mode="after")
    def _requests_need_an_endpoint(self) -> Reward:
        if self.kind != "endpoint" and (key := self.changed("timeout_seconds", "retries", "key_variable")):
            raise ValueError(f"{key} is of requests to an endpoint; leave it out of a term that is no URL")
        return self

    @property
    def kind(self) -> Literal["rm", "endpoint", "function"]:
        """What gives the term, which its source tells."""
        if self.source == RM:
            return "rm"
        return "endpoint" if "://" in self.source else "function"

    @property
    def label(self) -> str:
        """What the term is called in metrics."""
        if self.name or self.kind == "rm":
            return self.name or RM
        return urlsplit(self.source).netloc if self.kind == "endpoint" else self.source.partition(":")[2]


class Ppo(Training):
    """PPO against the reward model (Schulman et al. 2017; Ouyang et al. 2022, equation 2)."""

    model_config = ConfigDict(serialize_by_alias=True)

    start: Text | None = Field(
        None,
        alias="from",
        description="folder of a PEFT LoRA adapter that the policy starts from, such as that of an earlier "
        "round of PPO; default: SFT's",
    )
    reference: Literal["sft", "from"] = Field(
        "sft", description="policy that the KL is to: SFT's, or the adapter in from, where the policy starts"
    )
    learning_rate: LearningRate = Field(
        5e-5,
        description="of the policy's adapter; lower it if the KL runs away, or for far more than 200 updates",
    )
    critic_learning_rate: LearningRate | None = Field(
        None, description="of the critic; default: learning_rate"
    )
    scheduler: Literal["linear", "cosine", "constant"] = Field(
        "constant", description="course of the learning rates over all updates, after the warm-up"
    )
    iterations: Count = Field(
        100, description="number of rollouts of batch_size prompts; updates follow each one"
    )
    epochs: Size = Field(2, description="passes over the responses of a rollout")
    minibatches: Size = Field(1, description="optimizer steps per pass; must divide batch_size")
    rollout: Rollout = Rollout()
    kl_coef: NonNegative = Field(
        0.05, description="beta, the weight of the KL; with kl_target, its initial value"
    )
    kl_target: Positive | None = Field(
        None, description="adapt kl_coef to keep the KL near this, in nats per response"
    )
    kl_horizon: Positive = Field(10_000.0, description="responses over which kl_coef adapts")
    kl_estimator: Literal["k1", "k3"] = Field(
        "k1", description="of the KL per token; use k3 with kl_in: loss, as it is too weak in the reward"
    )
    max_kl: Positive | None = Field(
        None, description="nats per response; a rollout above it ends the run with the last policy below it"
    )
    kl_in: Literal["reward", "loss"] = Field(
        "reward", description="the KL penalty is part of the reward or of the loss"
    )
    rewards: Annotated[list[Reward], Field(min_length=1)] = Field(
        [Reward()], description="terms of the reward, which is their weighted sum; default: the reward model"
    )
    normalize_rewards: bool = Field(
        False, description="subtract the sum's running mean, and divide by its running deviation"
    )
    clip_reward: Positive | None = Field(None, description="clip the reward of a response to +- this")
    length_penalty: NonNegative = Field(0.0, description="subtracted from the score per response token")
    whiten_rewards: bool = Field(False, description="scale token rewards, with KL penalty, to deviation 1")
    whiten_advantages: bool = Field(
        True, description="scale advantages to mean 0, deviation 1; to 0 if the rewards hardly vary"
    )
    gamma: Fraction = Field(
        1.0, description="discount of GAE per token; 1 suits answers, whose reward comes at the end"
    )
    lam: Fraction = Field(
        0.95, description="lambda of GAE; a lower one relies more on the critic, with less noise"
    )
    clip_range: Positive = Field(0.2, description="the probability ratio has no more effect beyond 1 +- this")
    old_logprobs: Literal["auto", "recomputed"] = Field(
        "auto",
        description="of ratio and KL. recomputed: by the model that trains; auto: as sampled, which saves a "
        "forward, if that is equal to fp32 rounding (compute dtype float32, base not int8, engine not vllm) "
        "and no shared critic needs the forward; else recomputed",
    )
    clip_range_value: Positive | None = Field(
        0.2, description="the critic's values stay within this of the old ones; null does not clip them"
    )
    dual_clip: Annotated[float, Field(gt=1), PlainNumber] | None = Field(
        None, description="upper bound on the ratio of tokens with a negative advantage"
    )
    critic: Literal["adapter", "shared"] = Field(
        "adapter",
        description="adapter: its own adapter and head, from the reward model; shared: a head on the policy "
        "(a new head with rm.base, or if no reward is rm)",
    )
    vf_coef: NonNegative = Field(0.1, description="weight of the critic's loss")
    entropy_coef: NonNegative = Field(0.0, description="weight of the entropy bonus in the policy's loss")
    ptx_coef: NonNegative = Field(
        0.0, description="PPO-ptx: weight of the demonstrations' loss in each update"
    )
    ptx_batch_size: Size | None = Field(
        None, description="global: demonstrations per update; default: the responses per update"
    )
    ema_decay: Annotated[float, Field(gt=0, lt=1), PlainNumber] | None = Field(
        None, description="keep a moving average of the policy over iterations, in adapter-ema"
    )
    use_ema: bool = Field(
        False, description="the result is the average; the last policy goes to adapter-last"
    )
    critic_warmup: Annotated[int, Field(ge=0), PlainNumber] = Field(
        0, description="first iterations, which train only the critic"
    )
    max_approxkl: Positive | None = Field(
        None, description="end a rollout's updates once policy/approxkl_avg exceeds this"
    )
    missing_eos_penalty: NonNegative | None = Field(
        1.0, description="subtracted from the score of a response that did not end its turn"
    )
    judge: Literal["warmth", "warm_ending"] | Function | None = Field(
        None,
        description="function that scores held-out answers and is never optimised: one that ships, or "
        "your own (module:function)",
    )

    ensemble: Literal["mean", "min", "mean_minus_deviation"] = Field(
        "mean",
        description="one score of the reward models of rm.members: their mean, the lowest, or the mean less "
        "ensemble_coef times their standard deviation",
    )
    ensemble_coef: NonNegative = Field(
        1.0, description="lambda of ensemble: mean_minus_deviation; a higher one is more cautious"
    )

    @property
    def reference_name(self) -> str:
        """The reference in words: the policy that the KL is to."""
        return "the SFT policy" if self.reference == "sft" else "the starting policy"

    @property
    def uses_reward_model(self) -> bool:
        """Whether the reward model's score is a term of the reward."""
        return any(term.kind == "rm" for term in self.rewards)

    @property
    def sole_term(self) -> Reward | None:
        """The term that is the whole reward, as it is the only one and has weight 1; None of a sum."""
        return self.rewards[0] if len(self.rewards) == 1 and self.rewards[0].weight == 1 else None

    @property
    def reward_metric(self) -> str:
        """The final metric of what PPO optimises, without the role: a term alone, or the sum of all."""
        return f"{self.sole_term.label}_score" if self.sole_term else "reward_total"

    @model_validator(mode="after")
    def _labels_differ(self) -> Ppo:
        if any(term.label == RM != term.source for term in self.rewards):
            raise ValueError("rewards: rm is the reward model; set another name for the term that is none")
        labels = [term.label for term in self.rewards]
        if "reward_total" in labels or "reward_total_score" in labels:
            raise ValueError("rewards: reward_total is the sum of the terms; give the term another name")
        if not any(term.weight for term in self.rewards):
            raise ValueError("rewards: every weight is 0, so nothing is rewarded; give a term a weight")
        if len(set(labels)) < len(labels):
            raise ValueError(f"rewards: two terms are called {max(labels, key=labels.count)}; set their name")
        return self

    @model_validator(mode="after")
    def _reference_exists(self) -> Ppo:
        if self.reference == "from" and self.start is None:
            raise ValueError("reference: from needs a folder in from; without it, the policy starts at SFT's")
        return self

    @model_validator(mode="after")
    def _minibatches_divide(self) -> Ppo:
        if self.batch_size % self.minibatches:
            raise ValueError(f"minibatches ({self.minibatches}) must divide batch_size ({self.batch_size})")
        return self

    @model_validator(mode="after")
    def _options_are_compatible(self) -> Ppo:
        if self.kl_target and not self.kl_coef:
            raise ValueError("kl_target multiplies kl_coef by factors, so kl_coef must not start at 0")
        if self.kl_target and self.batch_size >= 5 * self.kl_horizon:
            raise ValueError(
                f"kl_horizon ({self.kl_horizon:g}) must be above a fifth of batch_size ({self.batch_size}), "
                "or kl_coef could turn negative"
            )
        if self.critic_warmup >= self.iterations:
            raise ValueError(
                f"critic_warmup ({self.critic_warmup}) must be below iterations ({self.iterations}), or the "
                "policy is never trained"
            )
        if self.use_ema and self.ema_decay is None:
            raise ValueError("use_ema needs ema_decay, such as 0.9")
        if self.kl_estimator == "k3" and self.rollout.truncates:
            raise ValueError(
                "kl_estimator: k3 is biased if rollout.top_k or rollout.top_p exclude tokens. Use k1, or "
                "sample from all tokens"
            )
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError("kl_in: loss needs kl_estimator: k3. The gradient of k1 always has mean 0")
        return self
