"""The schema of an experiment: `Experiment` and all of its sections. It imports no torch.

`configs/sections/` has one module for each section of the YAML. Other folders import all names from here.

Sizes that change the algorithm are global (`batch_size`). Sizes that only change speed or memory are
per rank (`micro_batch_size`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from configs.sections.base import Adapter, Base, RewardBase
from configs.sections.best import Best
from configs.sections.data import (
    DATA_FILES,
    FORMS,
    Columns,
    Data,
    FormatName,
    Part,
    Shares,
    Source,
    ending_of,
    names_files,
)
from configs.sections.deepspeed import DeepSpeed
from configs.sections.lineage import Lineage
from configs.sections.ppo import Ppo, Reward
from configs.sections.rollout import EMBEDDINGS, VLLM_LORA_RANKS, Rollout, Vllm, vllm_lora_rank
from configs.sections.tracking import Tracking
from configs.sections.training import (
    VIRTUAL_TOKENS,
    Agreement,
    Epochs,
    RankingLoss,
    Rankings,
    Rm,
    Sft,
    Training,
)
from configs.sections.values import JUDGE_FILES, LabellerKind, Section, Seed, labeller_kind, plain_url
from configs.stage_names import ALL_STAGES, STAGES, UPSTREAM, Stage, data_stage

MAX_NAME = 100  # letters of an experiment's name, of which W&B and file systems make longer ones

__all__ = [
    "ALL_STAGES",
    "DATA_FILES",
    "EMBEDDINGS",
    "FORMS",
    "JUDGE_FILES",
    "MAX_NAME",
    "STAGES",
    "UPSTREAM",
    "VIRTUAL_TOKENS",
    "VLLM_LORA_RANKS",
    "Adapter",
    "Agreement",
    "Base",
    "Best",
    "Columns",
    "Data",
    "DeepSpeed",
    "Epochs",
    "Experiment",
    "FormatName",
    "Lineage",
    "Part",
    "Ppo",
    "RankingLoss",
    "Rankings",
    "Reward",
    "RewardBase",
    "Rm",
    "Rollout",
    "Section",
    "Sft",
    "Shares",
    "Source",
    "Stage",
    "Tracking",
    "Training",
    "Vllm",
    "data_stage",
    "ending_of",
    "labeller_kind",
    "names_files",
    "plain_url",
    "vllm_lora_rank",
]


class Experiment(Section):
    """One experiment. All stages share its bases, adapter and data, so stages cannot disagree."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=MAX_NAME)] = Field(
        description="of the run directory, runs/NAME, and of the group in W&B"
    )
    seed: Seed = Field(0, description="of the split, and of the noise and order of every stage")
    base: Base
    adapter: Adapter = Adapter()
    data: Data
    sft: Sft = Sft()
    rm: Rm = Rm()
    ppo: Ppo = Ppo()
    best: Best = Best()
    tracking: Tracking = Tracking()
    lineage: Lineage = Lineage()
    deepspeed: DeepSpeed = DeepSpeed()

    def base_of(self, stage: Stage) -> Base:
        """The base that the adapter of `stage` belongs to."""
        return self.rm.base or self.base if stage == "rm" else self.base

    def bases(self, stage: Stage) -> list[Base]:
        """The bases that `stage` loads: the policy's, and the reward model's if it has a separate one."""
        with_reward_model = stage == "rm" or "rm" in self.upstream(stage)
        return [self.base, self.rm.base] if with_reward_model and self.rm.base else [self.base]

    def upstream(self, stage: Stage) -> tuple[Stage, ...]:
        """The stages that `stage` starts from. PPO may do without a reward model."""
        without = stage == "ppo" and self.ppo.critic == "shared" and not self.ppo.uses_reward_model
        return tuple(upstream for upstream in UPSTREAM[stage] if not (without and upstream == "rm"))

    def data_behind(self, stage: Stage) -> tuple[Stage, ...]:
        """The stages whose rows decide what `stage` learns and is judged on: its own, and earlier ones.

        By `data.keep_apart`, the split depends on the prompts of earlier stages. PPO-ptx learns those of SFT.
        """
        if self.data.keep_apart:
            return (*self.upstream(stage), stage)
        return ("sft", stage) if stage == "ppo" and self.ppo.ptx_coef else (stage,)

    def labellers(self, stages: Sequence[Stage]) -> dict[str, str]:
        """Key and name of each labeller that the stages call."""
        named = self.rm.rankings.labellers if "rm" in stages else {}
        judges = {"ppo.judge": self.ppo.judge or ""} if "ppo" in stages or "best" in stages else {}
        return named | judges

    def judge_files(self, stages: Sequence[Stage]) -> dict[str, str]:
        """Key and path of each YAML file of an endpoint that labels for the stages."""
        return self._labellers_of("endpoint", stages)

    def _labellers_of(self, kind: LabellerKind, stages: Sequence[Stage]) -> dict[str, str]:
        return {key: name for key, name in self.labellers(stages).items() if labeller_kind(name) == kind}

    def users_code(self, stages: Sequence[Stage]) -> list[tuple[str, str | Reward]]:
        """Key and name of each `module:function` and each endpoint that the stages call.

        An endpoint is a labeller's YAML file or a term of the reward.
        """
        functions, judges = self._labellers_of("function", stages), self.judge_files(stages)
        terms = self.ppo.rewards if "ppo" in stages else []
        return [
            *(functions | judges).items(),
            *(("ppo.rewards", term) for term in terms if term.kind != "rm"),
        ]

    @property
    def starts(self) -> dict[Stage, str]:
        """The adapter folder that each stage starts from, if the user names one as `STAGE.from`."""
        folders: dict[Stage, str | None] = {
            "sft": self.sft.start,
            "rm": self.rm.start,
            "ppo": self.ppo.start,
        }
        return {stage: folder for stage, folder in folders.items() if folder}

    @property
    def rollouts(self) -> dict[Stage, tuple[str, Rollout]]:
        """Key and rollout section of each stage that samples."""
        best, ppo = self.best.rollout, ("ppo.rollout", self.ppo.rollout)
        return {
            "rm": ("rm.rankings.rollout", self.rm.rankings.rollout),
            "ppo": ppo,
            "best": ("best.rollout", best) if best else ppo,
        }
