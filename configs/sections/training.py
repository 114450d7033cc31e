"""The sections `sft` and `rm`, and the keys that all training stages share."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from configs.sections.base import RewardBase
from configs.sections.rollout import Rollout
from configs.sections.values import (
    BelowOne,
    Count,
    Fraction,
    Function,
    JudgeFile,
    LearningRate,
    NonNegative,
    PlainNumber,
    Positive,
    Section,
    Seed,
    Size,
    Text,
    labeller_kind,
)


class Training(Section):
    """Keys of all three stages: AdamW, its schedule, batch sizes, and when to log, evaluate and save."""

    learning_rate: LearningRate = Field(
        2e-4,
        description="peak of AdamW's rate. Lower it for bases above 13B; raise it if the loss hardly falls",
    )
    lora_plus_ratio: Annotated[float, Field(ge=1, le=10_000), PlainNumber] = Field(
        1.0,
        description="LoRA+: the rate of B is this times that of A; 16 is usual, with a lower learning_rate",
    )
    scheduler: Literal["linear", "cosine", "constant"] = Field(
        "cosine", description="course of the learning rate after the warm-up: down to 0, or constant"
    )
    warmup_ratio: Fraction = Field(0.03, description="share of the steps with a rising learning rate")
    weight_decay: Annotated[float, Field(ge=0, le=100), PlainNumber] = Field(
        0.0, description="of AdamW, on the adapters; seldom needed for LoRA"
    )
    adam_beta1: BelowOne = Field(0.9, description="decay of AdamW's mean of gradients")
    adam_beta2: BelowOne = Field(
        0.999, description="decay of AdamW's mean of squared gradients; 0.95 forgets outliers sooner"
    )
    adam_epsilon: Positive = Field(1e-8, description="added to the root of AdamW's squared mean")
    max_grad_norm: NonNegative = Field(
        1.0, description="clip the gradient's norm to this; 0 turns clipping off"
    )
    max_skipped_updates: Count = Field(
        10, description="stop after this number of updates in a row with a gradient that is not finite"
    )
    batch_size: Size = Field(64, description="global: sequences (sft), prompts (rm, ppo) per step")
    micro_batch_size: Size = Field(8, description="sequences in one forward pass of one rank")
    logging_steps: Count = Field(1, description="log metrics every N steps")
    eval_steps: Count | None = Field(None, description="evaluate every N steps; always at the end")
    save_steps: Count = Field(50, description="write a checkpoint every N steps")
    keep_checkpoints: Count = Field(
        2, description="number of latest checkpoints to keep, beside the best evaluated one"
    )
    seed: Seed | None = Field(
        None, description="seed of this stage's noise and order; default: the experiment's"
    )


class Epochs(Training):
    """Keys of a stage that makes passes over a data set."""

    epochs: Annotated[float, Field(gt=0, le=100_000), PlainNumber] = Field(
        1.0, description="passes over the training examples"
    )
    max_steps: Annotated[int, Field(ge=0, le=10**9), PlainNumber] | None = Field(
        None, description="maximum number of steps, whatever `epochs` says; 0 evaluates and trains nothing"
    )
    group_by_length: bool = Field(
        False,
        description="make batches of examples of about the same length, and take the batches in random "
        "order: less padding",
    )
    use_best: bool = Field(
        False, description="the result is the checkpoint with the lowest held-out loss, not the last"
    )

    @model_validator(mode="after")
    def _evaluated_checkpoints(self) -> Epochs:
        if self.use_best and self.max_steps == 0:
            raise ValueError("use_best chooses among checkpoints, and max_steps: 0 makes none; leave it out")
        if self.use_best and (self.eval_steps is None or self.eval_steps % self.save_steps):
            raise ValueError(
                f"use_best chooses among evaluated checkpoints: eval_steps ({self.eval_steps}) must "
                f"be a multiple of save_steps ({self.save_steps})"
            )
        return self


# Why a method ends at SFT: no stage after it starts from its result.
VIRTUAL = "its result is virtual tokens before the prompt; a role is weights that add to the base's"
NO_ROLE: dict[str, str] = {
    "ia3": "it scales activations; a role is weights that add to the base's",
    "bitfit": "it trains biases; a role is weights that add to the base's",
    "random_subset": "it changes single weights; a role is a product of two small matrices",
    "prefix": VIRTUAL,
    "prompt": VIRTUAL,
    "p_tuning": VIRTUAL,
}
VIRTUAL_TOKENS = tuple(method for method, reason in NO_ROLE.items() if reason == VIRTUAL)


class Sft(Epochs):
    """Supervised fine-tuning on demonstrations (Ouyang et al. 2022, section 3.5)."""

    model_config = ConfigDict(serialize_by_alias=True)

    method: Literal["lora", "adalora", "ia3", "prefix", "prompt", "p_tuning", "bitfit", "random_subset"] = (
        Field(
            "lora",
            description="what SFT trains. adalora ends as LoRA; no reward model and no PPO start from the "
            "others",
        )
    )
    virtual_tokens: Annotated[int, Field(ge=1, le=10_000), PlainNumber] = Field(
        20, description="of prefix, prompt and p_tuning: how many trained vectors stand before the prompt"
    )
    packing: bool = Field(False, description="pack short examples into sequences of data.max_length")
    start: Text | None = Field(
        None,
        alias="from",  # a word of Python
        description="folder of a PEFT LoRA adapter to start from, yours or another program's; default: a "
        "fresh adapter",
    )

    @property
    def no_role(self) -> str | None:
        """Why no stage can start from the result of `method`; None if one can."""
        return NO_ROLE.get(self.method)


class Agreement(Section):
    """Two labellers. Answers are kept where both order them alike."""

    agree: Annotated[
        list[Literal["warmth", "warm_ending"] | Function | JudgeFile], Field(min_length=2, max_length=2)
    ] = Field(description="two labellers that differ, each as in rm.rankings.labeller")


class Rankings(Section):
    """InstructGPT's step 2: sample answers of the SFT policy and have a labeller rank them."""

    labeller: Literal["file", "people", "warmth", "warm_ending"] | Function | JudgeFile | Agreement = Field(
        "file",
        description="file: data.rm already holds rankings; people: `tristage collect rankings` asks them, "
        "and the stage waits; warmth: sentiment less repetition; warm_ending: the demo's, which also wants "
        "plain English on the subject; your own Python function `module:function`; the YAML file of an "
        "endpoint that judges, such as judge.yaml; or {agree: [a, b]}: two of these, but not file or people, "
        "kept where they agree",
    )
    completions: Annotated[int, Field(ge=2, le=1024), PlainNumber] = Field(
        4, description="K, the number of answers to rank per prompt"
    )
    complete: Fraction = Field(
        1.0,
        description="people: share of the prompts that must be ranked, or skipped, before the stage starts",
    )
    earlier: tuple[Text, ...] = Field(
        (),
        description="rankings.jsonl of earlier rounds, which the reward model learns beside the new ones; "
        "`tristage round` names them",
    )
    merge: Literal["each", "bradley_terry"] = Field(
        "each",
        description="people: what becomes of several people's rankings of one prompt. each: each is a "
        "ranking to train on; bradley_terry: one ranking by scores that all of them imply",
    )
    rollout: Rollout = Rollout()

    @property
    def labellers(self) -> dict[str, str]:
        """Name of each labeller that ranks samples, by its key; empty if the file holds rankings."""
        key, labeller = "rm.rankings.labeller", self.labeller
        if isinstance(labeller, Agreement):
            return {f"{key}.agree[{place}]": name for place, name in enumerate(labeller.agree)}
        return {} if labeller == "file" else {key: labeller}

    @property
    def of_single_people(self) -> bool:
        """Whether each ranking is one person's, so that the agreement of two people bounds accuracy."""
        return self.labeller == "people" and self.merge == "each"

    @property
    def only_compares(self) -> bool:
        """Whether the labeller gives ranks without scores."""
        labeller = self.labeller
        if labeller == "people":
            return self.merge == "each"
        return isinstance(labeller, Agreement) or labeller_kind(labeller) == "endpoint"

    @property
    def labelled_by(self) -> str:
        """The labellers as a message names them: a file without its folder."""
        names = [PurePath(name).name for name in self.labellers.values()]
        return f"{' and '.join(names)}, where they agree" if len(names) > 1 else "".join(names) or "file"


class RankingLoss(Section):
    """Loss of the reward model on a ranking; docs/concepts/ranking-loss.md has the equations."""

    kind: Literal["bradley_terry", "plackett_luce"] = Field(
        "bradley_terry",
        description="bradley_terry: mean over the pairs of a ranking; plackett_luce: likelihood of the whole "
        "ranking, a choice at a time",
    )
    ties: Literal["ignore", "half"] = Field(
        "ignore",
        description="tied pairs are left out, or count as half a win each way. A ranking whose answers all "
        "tie is always left out",
    )
    margin: Literal["none", "scores"] = Field(
        "none",
        description="scores: the better answer must lead by margin_scale times the difference of the "
        "labeller's scores",
    )
    margin_scale: Positive = Field(1.0, description="with margin: scores, what multiplies the difference")
    center: NonNegative = Field(
        0.0, description="weight of the squared sum of a pair's two rewards, which pulls rewards to mean 0"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5), PlainNumber] = Field(
        0.0, description="share of the pairs that are assumed to be labelled the wrong way round"
    )


class Rm(Epochs):
    """Reward model on rankings (Ouyang et al. 2022, equation 1)."""

    model_config = ConfigDict(serialize_by_alias=True)

    start: Text | None = Field(
        None,
        alias="from",
        description="folder of a reward model to start from: LoRA with a head, by this program or by TRL's "
        "RewardTrainer; default: SFT's adapter with a fresh head",
    )
    base: RewardBase | None = Field(
        None, description="separate base for the reward model and PPO's critic; default: the experiment's"
    )
    members: Annotated[int, Field(ge=1, le=64), PlainNumber] = Field(
        1,
        description="reward models of an ensemble, with heads and orders of their own; ppo.ensemble combines "
        "their scores",
    )
    pooling: Literal["last", "mean"] = Field(
        "last", description="the score is read at the answer's last token, or is the mean over its tokens"
    )
    packing: bool = Field(
        False,
        description="put several short rankings of a batch into one row; the result is the same",
    )
    rankings: Rankings = Rankings()
    loss: RankingLoss = RankingLoss()
    normalization_prompts: Size = Field(
        64,
        description="held-out prompts. Their SFT samples get scores of mean 0 and standard deviation 1",
    )

    @model_validator(mode="after")
    def _untrained_has_a_head(self) -> Rm:
        if self.max_steps == 0 and self.start is None:
            raise ValueError(
                "max_steps: 0 leaves the head random, which scores nothing; name a reward model in from, or "
                "allow steps"
            )
        return self
