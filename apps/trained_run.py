"""A run whose stages have finished, opened to use its policies and its reward model on one frozen base."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from apps.given_policy import check_given, check_loaded_base
from apps.stage_data import prompts_are_chats, rows_of, with_own_template
from configs.errors import UserError
from configs.load import load_experiment
from configs.schema import Base, Data, Experiment, Stage
from data.batches import tokenize
from data.batches.sampler import micro_batches
from data.examples import StageRows, once_each
from data.sources.formats import Kind
from data.sources.messages import Text
from data.sources.mixture import first_of_each
from pipeline.state.manifest import Manifest, damage, read_manifest
from pipeline.state.run_directory import RunDirectory
from pipeline.state.stage_state import base_fault
from stages.distributed.ranks import Ranks
from stages.feedback.reward_model import score_tokens
from stages.models.base import base_digest, load_base, load_config
from stages.models.base_checks import check_base
from stages.models.reward_members import add_members, member_folders
from stages.models.role_models import RoleModels
from stages.models.roles import Role, Roles
from stages.setup import load_checked_tokenizer

POLICY_STAGES: tuple[Stage, ...] = ("sft", "ppo")
BASE = str(Role.BASE)
SCORED_AT_ONCE = 16


@dataclass(frozen=True)
class TrainedRun:
    """A run directory with at least one finished stage.

    Attributes:
        run: its folders.
        config: the experiment, as the run directory has it.
        manifests: of the finished stages.
    """

    run: RunDirectory
    config: Experiment
    manifests: Mapping[Stage, Manifest]

    @property
    def policies(self) -> tuple[str, ...]:
        """Names of the policies: `base`, and each finished stage that trained one. The newest is last."""
        return (BASE, *(stage for stage in POLICY_STAGES if stage in self.manifests))

    @cached_property
    def chat(self) -> bool:
        """Whether the prompts are conversations; see `prompts_are_chats`."""
        return prompts_are_chats(self.run, self.config, self.manifests)

    def rows(self, stage: Stage, kind: Kind) -> StageRows:
        """The rows of a stage, split again; see `rows_of`."""
        return rows_of(self.run, self.config, self.manifests, stage, kind)

    def require(self, stage: Stage) -> Manifest:
        """The manifest of `stage`.

        Raises:
            UserError: the stage has not finished, or trained on another base than the configuration names.
        """
        if stage not in self.manifests:
            finished = ", ".join(self.manifests) or "none"
            raise UserError(
                f"{self.run.path}: stage {stage} has not finished here (finished: {finished}). Run it first, "
                "or name another stage or run."
            )
        manifest = self.manifests[stage]
        if fault := base_fault(self.config, manifest):
            raise UserError(
                f"{self.run.config_file}: {fault}. Restore the setting, or train the stage again."
            )
        return manifest

    def adapter(self, stage: Stage) -> Path:
        """The adapter folder of `stage`, byte for byte as the stage wrote it.

        Raises:
            UserError: the stage has not finished, or the folder is damaged.
        """
        manifest, folder = self.require(stage), self.run.adapter(stage)
        if stage == "sft" and (reason := self.config.sft.no_role):
            raise UserError(
                f"{folder}: sft.method is {self.config.sft.method}: {reason}. Load it with PEFT itself: "
                "PeftModel.from_pretrained(base, folder)."
            )
        faults = damage(folder, manifest.output.files if manifest.output else {})
        if faults:
            raise UserError(f"{faults[0]}. Restore it, or train stage {stage} again.")
        return folder


def open_run(run_dir: Path, overrides: Sequence[str] = ()) -> TrainedRun:
    """Read what a run directory says of its finished stages. Loads no model.

    Args:
        overrides: `key=value` words that change settings of the run's `config.yaml`.

    Raises:
        UserError: `run_dir` is no run directory, or a manifest or a word is wrong.
    """
    run = RunDirectory(run_dir)
    run.check()
    found = {stage: read_manifest(run.manifest(stage)) for stage in (*POLICY_STAGES, "rm")}
    finished = {stage: one for stage, one in found.items() if one and one.status == "finished"}
    return TrainedRun(run, load_experiment(run.config_file, overrides), finished)


def this_process() -> Ranks:
    """The only rank: the first GPU if there is one, else the CPU."""
    return Ranks(0, 1, torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))


@dataclass(frozen=True)
class Adapters:
    """Adapters to load over the base.

    Attributes:
        policies: folder of each policy by name; `None` is the base itself.
        reward: the reward model's folder, if it is wanted.
        member: of an ensemble, the number of the one that is wanted, from 1; None for all.
    """

    policies: Mapping[str, Path | None]
    reward: Path | None = None
    member: int | None = None


def chosen_adapters(run: TrainedRun, names: Sequence[str], *, reward: bool) -> Adapters:
    """The adapters of the policies `names`: `base`, `sft`, `ppo`, or the path of an adapter folder.

    Raises:
        UserError: a name is none of these, a stage has not finished, or a folder is damaged.
    """
    policies: dict[str, Path | None] = {}
    for name in dict.fromkeys(names):
        if name == BASE:
            policies[name] = None
        elif name in POLICY_STAGES:
            policies[name] = run.adapter(name)
        elif name and Path(name).is_dir():
            check_given(run.config, Path(name))
            policies[name] = Path(name)
        else:
            raise UserError(
                f"policy {name!r:.200}: neither base, sft, ppo nor a folder with an adapter. This run has "
                f"{', '.join(run.policies)}."
            )
    return Adapters(policies, run.adapter("rm") if reward else None)


@dataclass(frozen=True)
class LoadedPolicies:
    """Policies, and maybe the reward model, in memory, all frozen.

    Attributes:
        roles: of each policy by its name, the name of its role in `models`.
        models: the base or bases, with those roles.
        reward: whether `Role.REWARD` is among them.
    """

    roles: Mapping[str, str]
    models: RoleModels
    reward: bool

    @property
    def base(self) -> Roles:
        """The base of the policies."""
        return self.models.policy_base

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the policies, with the experiment's chat template."""
        return self.models.tokenizer


def load_policies(run: TrainedRun, adapters: Adapters, ranks: Ranks) -> LoadedPolicies:
    """Load the base as it was trained on, quantized in the same way, and the adapters over it.

    Raises:
        UserError: the base is not there, is not the one of the training, or an adapter does not fit.
    """
    config = run.config
    policy_base = _load(run, "sft", config.base, ranks)
    bases = [policy_base]
    if adapters.reward and config.rm.base:
        bases.append(_load(run, "rm", config.rm.base, ranks))
    models = RoleModels(*bases)
    roles = {}
    for number, (name, folder) in enumerate(adapters.policies.items()):
        roles[name] = BASE if folder is None else f"policy-{number}"  # no name of a module is like this
        if folder is not None:
            _check_trained_on(run, folder, models.policy_base)
            check_loaded_base(
                folder, config, models.policy_base.base_digest, models.tokenizer if run.chat else None
            )
            models.policy_base.add_from(roles[name], folder, trainable=False)
    if adapters.reward:
        _check_trained_on(run, adapters.reward, models.reward_base)
        if adapters.member is None:
            add_members(models.reward_base, adapters.reward)
        else:
            member = member_folders(adapters.reward)[adapters.member - 1]
            models.reward_base.add_from(Role.REWARD, member, trainable=False)
    models.requires_grad_(False).eval()
    return LoadedPolicies(roles, models, adapters.reward is not None)


def _load(run: TrainedRun, stage: Stage, base: Base, ranks: Ranks) -> tuple[Roles, PreTrainedTokenizerBase]:
    config = with_own_template(run.run, run.config, stage)
    tokenizer = load_checked_tokenizer(config, stage, base, load_config(base))
    model = load_base(base, ranks.device)
    return Roles(model, base_digest(base, model)), tokenizer


def _check_trained_on(run: TrainedRun, folder: Path, base: Roles) -> None:
    """Raise UserError if `folder` is a stage's of this run, and the stage trained on another base."""
    for stage, manifest in run.manifests.items():
        if folder == run.run.adapter(stage) and manifest.base_digest:
            check_base(run.config, stage, manifest.base_digest, base.base_digest)


def held_out_prompts(
    run: TrainedRun,
    tokenizer: PreTrainedTokenizerBase,
    note: Callable[[str], None],
    number: int | None = None,
) -> list[tokenize.Prompt]:
    """The prompts that the run keeps from all training, each once, as PPO's own evaluation asks them.

    Args:
        note: called with a line on prompts that repeat others.
        number: the most prompts, for which several sources take turns; None for all.

    Raises:
        UserError: the data is not where the configuration says, or it has no held-out prompts.
    """
    rows = run.rows("ppo", "prompts").held_out
    found, _ = tokenize.prompts(rows, tokenizer, run.config.data)
    prompts = once_each(found, note)
    if not prompts:
        raise UserError(
            f"data.ppo.held_out: {run.run.path} keeps no prompts from training. tristage evaluate takes "
            "others with --prompts, and tristage export --format adapter needs none."
        )
    return prompts if number is None else first_of_each(prompts, number, lambda prompt: prompt.source)


def reward_scores(
    policies: LoadedPolicies,
    pairs: Sequence[tuple[Text, str]],
    data: Data,
    ended: Sequence[bool] | None = None,
) -> list[float]:
    """The reward model's score of each prompt and answer.

    Args:
        ended: whether each answer ended, and so has an end-of-turn token; None if all did.
    """
    models, scores = policies.models, list[float]()
    tokenizer, device = models.reward_tokenizer, models.reward_base.causal.device
    ends = [True] * len(pairs) if ended is None else ended
    for some in micro_batches(list(zip(pairs, ends, strict=True)), SCORED_AT_ONCE):
        rows = [tokenize.answer(*pair, its_end, tokenizer, data) for pair, its_end in some]
        scores += score_tokens(models, rows, device).tolist()
    return scores
