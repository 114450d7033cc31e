"""Decide what happens to a stage, and why: run, resume, skip, wait for people, or blocked.

Planning reads the configuration and the run directory. It starts nothing and writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from configs.cross_checks import without_effect
from configs.errors import UserError, Waiting
from configs.identity import differences, stage_hash
from configs.schema import STAGES, Stage
from data.storage.files import PARTIAL
from pipeline.planning.people import stale_answers, waits_for_people
from pipeline.planning.request import Request
from pipeline.planning.upstream import Blocked, check_upstream
from pipeline.state.manifest import Input, Manifest, damage, owner_of, read_manifest
from pipeline.state.run_directory import PLAIN_REMEDY, not_plain
from pipeline.state.stage_state import PREDICATES, nobody, state_of

Action = Literal["run", "resume", "skip", "wait", "blocked"]


@dataclass(frozen=True)
class StagePlan:
    """The decision about one stage.

    Attributes:
        why: one line for the user. For a blocked stage, it says what is wrong.
        remedy: what to do about a blocked or a waiting stage.
        set_aside: the new name of the stage's present folder, which is renamed before the stage runs.
        inputs: the adapters that the stage reads, without those that are still to be trained.
        notes: lines for the user that do not change the decision.
    """

    stage: Stage
    action: Action
    why: str
    remedy: str = ""
    set_aside: Path | None = None
    inputs: dict[Stage, Input] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def starts(self) -> bool:
        """Whether the stage will run or resume."""
        return self.action in ("run", "resume")

    def check_runnable(self) -> None:
        """Raise UserError if the stage is blocked, Waiting if it waits for people."""
        if self.action == "wait":
            raise Waiting(f"stage {self.stage} {self.why}. {self.remedy}")
        if self.action == "blocked":
            raise UserError(f"stage {self.stage}: {self.why}.\n{self.remedy}")


def plan_stages(request: Request, stages: Sequence[Stage]) -> list[StagePlan]:
    """Plan stages that run one after another. Each stage counts on the results of the earlier ones.

    Raises:
        UserError: a manifest cannot be read.
    """
    plans: list[StagePlan] = []
    pending: set[Stage] = set()
    for stage in stages:
        if stage == "rm" and not _needed(request, stage, stages):
            plans.append(StagePlan(stage, "skip", "not needed: neither ppo.rewards nor ppo.critic uses it"))
            continue
        plan = plan_stage(request, stage, locked=request.run.is_locked(stage), pending=frozenset(pending))
        plans.append(plan)
        if plan.action != "skip":
            pending.add(stage)
    return plans


def plan_stage(
    request: Request, stage: Stage, *, locked: bool = False, pending: frozenset[Stage] = frozenset()
) -> StagePlan:
    """Decide about one stage.

    Args:
        locked: another process runs the stage now.
        pending: upstream stages that train again before this one starts.

    Raises:
        UserError: a manifest cannot be read.
    """
    manifest = read_manifest(request.run.manifest(stage))
    if locked:
        return StagePlan(
            stage, "blocked", f"is being run by {owner_of(manifest)}", "Wait until it ends, or stop it."
        )
    try:
        inputs, notes = check_upstream(request, stage, pending)
        plan = _decide(request, stage, manifest, inputs, pending)
        _check_writable_folder(request.run.stage(stage), plan)
    except Blocked as blocked:
        return StagePlan(stage, "blocked", blocked.why, blocked.remedy)
    if plan.starts:
        notes += (*stale_answers(request, stage), *without_effect(request.config, stage))
    if plan.starts and (why := waits_for_people(request, stage, resumes=plan.action == "resume")):
        if "sft" in pending:
            return replace(plan, inputs=inputs, notes=(*notes, f"{why}, once sft has finished"))
        plan = StagePlan(stage, "wait", why, f"Ask them: {request.collect_command('rankings')}")
    if plan.action == "skip" and manifest is not None:
        notes += tuple(manifest.record_faults(request.run.stage(stage)))
    return replace(plan, inputs=inputs, notes=notes)


def _check_writable_folder(folder: Path, plan: StagePlan) -> None:
    """Refuse a folder with links, unless the stage gets a new one or writes nothing."""
    if plan.starts and not plan.set_aside and (fault := not_plain(folder)):
        raise Blocked(fault, PLAIN_REMEDY)


def _needed(request: Request, stage: Stage, stages: Sequence[Stage]) -> bool:
    """Whether a later one of `stages` starts from `stage`, or there is none later."""
    later = stages[stages.index(stage) + 1 :]
    return not later or any(stage in request.config.upstream(downstream) for downstream in later)


def stages_between(first: Stage, last: Stage) -> list[Stage]:
    """The stages from `first` to `last`, both included; empty if `last` comes before `first`."""
    return list(STAGES[STAGES.index(first) : STAGES.index(last) + 1])


def sealed_checkpoint(folder: Path) -> Path | None:
    """The newest sealed checkpoint in the stage's `folder`. The stage itself verifies its content."""
    sealed = sorted((folder / "checkpoints").glob("step-[0-9]*/seal.json"))
    return sealed[-1].parent if sealed else None


def _decide(
    request: Request,
    stage: Stage,
    manifest: Manifest | None,
    inputs: dict[Stage, Input],
    pending: frozenset[Stage],
) -> StagePlan:
    """Decide from the stage's own folder. Its upstream stages are verified already."""
    if manifest is None:
        return _plan_without_manifest(request, stage)
    changes = _changes(request, stage, manifest, inputs, pending)
    if manifest.status == "finished":
        return _plan_finished(request, stage, manifest, changes)
    return _plan_unfinished(request, stage, manifest, changes)


def _plan_without_manifest(request: Request, stage: Stage) -> StagePlan:
    folder = request.run.stage(stage)
    if folder.exists() and not folder.is_dir():
        raise Blocked(f"{folder} is a file where its folder should be", "Move the file away.")
    # A stage that is killed before it writes its first manifest leaves nothing worth keeping.
    if folder.is_dir() and any(path.suffix != PARTIAL for path in folder.iterdir()):
        aside = request.run.aside(stage)
        return StagePlan(stage, "run", "its folder has no manifest.json; the folder is kept", set_aside=aside)
    return StagePlan(stage, "run", "has not run yet")


def _plan_finished(request: Request, stage: Stage, manifest: Manifest, changes: list[str]) -> StagePlan:
    aside = request.run.aside(stage)
    if changes:
        return StagePlan(stage, "run", f"finished, but these changed: {'; '.join(changes)}", set_aside=aside)
    if request.force:
        return StagePlan(stage, "run", "finished, and runs again because of --force", set_aside=aside)
    problems = damage(request.run.output(stage), manifest.output.files) if manifest.output else []
    if problems:  # it may hold days of training, so the user decides whether to repeat it
        raise Blocked(
            f"finished, but damaged since: {'; '.join(problems)}",
            f"Restore the file, or train {stage} again: {request.command(stage, '--force')}",
        )
    return StagePlan(stage, "skip", "finished with this configuration and these inputs")


def _plan_unfinished(request: Request, stage: Stage, manifest: Manifest, changes: list[str]) -> StagePlan:
    checkpoint = sealed_checkpoint(request.run.stage(stage))
    state = PREDICATES[state_of(manifest, nobody)]  # no other process runs it any more
    aside = request.run.aside(stage)
    if request.fresh:
        return StagePlan(stage, "run", f"{state}; starts over because of --fresh", set_aside=aside)
    if changes and checkpoint:
        raise Blocked(
            f"{state} at {checkpoint.name}, but these changed: {'; '.join(changes)}",
            f"Restore these to resume, or start over: {request.command(stage, '--fresh')}",
        )
    if changes:
        why = f"{state} before any checkpoint, but these changed: {'; '.join(changes)}"
        return StagePlan(stage, "run", why, set_aside=aside)
    start = f"from {checkpoint.name}" if checkpoint else "from its start, as it has no checkpoint yet"
    return StagePlan(stage, "resume", f"{state}; resumes {start}")


def _changes(
    request: Request, stage: Stage, manifest: Manifest, inputs: dict[Stage, Input], pending: frozenset[Stage]
) -> list[str]:
    """Configuration keys, files and inputs that differ from those that `manifest` records."""
    changes = []
    if manifest.config_hash != stage_hash(request.config, stage):
        # Empty if a newer schema only adds keys at their defaults.
        changes += differences(manifest.config, request.config, stage)
    changes += manifest.changed_sources(request.source_hashes(stage))
    for upstream in request.config.upstream(stage):
        if upstream in pending:
            changes.append(f"{upstream} is to be trained before it")
        elif upstream not in manifest.inputs or manifest.inputs[upstream].sha256 != inputs[upstream].sha256:
            changes.append(f"it was trained on another {upstream} adapter than the present one")
    return changes
