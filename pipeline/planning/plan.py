"""What would be done with a stage, and why: run, resume, skip, or blocked until the user acts.

Pure decisions over the configuration and what lies in the run directory: nothing is started or written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from configs.identity import differences, stage_hash
from configs.schema import STAGES, UPSTREAM, Experiment, Stage
from data.storage.files import PARTIAL
from pipeline.state.manifest import BaseModelId, Input, Manifest, damage, read_manifest, source_hashes
from pipeline.state.run_directory import RunDirectory

Action = Literal["run", "resume", "skip", "blocked"]


@dataclass(frozen=True)
class Request:
    """What is asked for: the experiment, where it runs, and how the command line was put.

    Attributes:
        arguments: `--config`, `--run-dir` and overrides as given, repeated in commands that are suggested.
        force: run a finished stage again.
        fresh: start an interrupted stage over.
    """

    config: Experiment
    run: RunDirectory
    arguments: str = ""
    force: bool = False
    fresh: bool = False

    def command(self, stage: Stage, *switches: str) -> str:
        """The command line that runs `stage` of this request."""
        return " ".join(
            ["deepspeed launch/run_stage.py --stage", stage, *filter(None, [self.arguments]), *switches]
        )


@dataclass(frozen=True)
class StagePlan:
    """One stage's decision.

    Attributes:
        why: one line for a person; where `action` is blocked, what is wrong.
        remedy: what to do about a blocked stage.
        set_aside: the name that the stage's present folder is to be given first.
        inputs: the adapters that the stage would read; those still to be trained are missing here.
        notes: lines that do not decide anything but that a person should see.
    """

    stage: Stage
    action: Action
    why: str
    remedy: str = ""
    set_aside: Path | None = None
    inputs: dict[Stage, Input] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Blocked(Exception):
    """A stage cannot go on: (what is wrong, what to do)."""

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(why)
        self.why, self.remedy = why, remedy


def plan_stages(request: Request, stages: Sequence[Stage]) -> list[StagePlan]:
    """Plan stages that would run one after another, each on what those before it will have left."""
    plans: list[StagePlan] = []
    pending: set[Stage] = set()
    for stage in stages:
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
        pending: stages upstream that will have been trained anew by the time this one begins.

    Raises:
        UserError: a manifest cannot be read.
    """
    manifest = read_manifest(request.run.manifest(stage))
    if locked:
        return StagePlan(
            stage, "blocked", f"is being run by {_owner(manifest)}", "Wait until it ends, or stop it."
        )
    try:
        inputs, notes = _check_inputs(request, stage, pending)
        plan = _decide(request, stage, manifest, inputs, pending)
    except Blocked as blocked:
        return StagePlan(stage, "blocked", blocked.why, blocked.remedy)
    if plan.action == "skip" and manifest is not None:
        notes += tuple(manifest.record_faults(request.run.stage(stage)))
    return StagePlan(stage, plan.action, plan.why, plan.remedy, plan.set_aside, inputs, notes)


def sealed_checkpoint(folder: Path) -> Path | None:
    """The newest sealed checkpoint in the stage's `folder`; the stage itself verifies its content."""
    sealed = sorted((folder / "checkpoints").glob("step-[0-9]*/seal.json"))
    return sealed[-1].parent if sealed else None


def _decide(
    request: Request,
    stage: Stage,
    manifest: Manifest | None,
    inputs: dict[Stage, Input],
    pending: frozenset[Stage],
) -> StagePlan:
    """Decide from what is in the stage's own folder, given good inputs."""
    if manifest is None:
        return _without_manifest(request, stage)
    changes = _changes(request, stage, manifest, inputs, pending)
    if manifest.status == "finished":
        return _finished(request, stage, manifest, changes)
    return _unfinished(request, stage, manifest, changes)


def _without_manifest(request: Request, stage: Stage) -> StagePlan:
    folder = request.run.stage(stage)
    if folder.exists() and not folder.is_dir():
        raise Blocked(f"{folder} is a file where its folder should be", "Move the file away.")
    # A stage that was killed before its first manifest was whole has left nothing worth keeping.
    if folder.is_dir() and any(path.suffix != PARTIAL for path in folder.iterdir()):
        return StagePlan(
            stage,
            "run",
            "its folder has no manifest.json; the folder is kept",
            set_aside=request.run.aside(stage),
        )
    return StagePlan(stage, "run", "has not run yet")


def _finished(request: Request, stage: Stage, manifest: Manifest, changes: list[str]) -> StagePlan:
    aside = request.run.aside(stage)
    if changes:
        return StagePlan(stage, "run", f"finished, but changed since: {'; '.join(changes)}", set_aside=aside)
    if request.force:
        return StagePlan(stage, "run", "finished, and run again because of --force", set_aside=aside)
    problems = damage(request.run.output(stage), manifest.output.files) if manifest.output else []
    if problems:  # days of work: it is not for the plan to do them again
        raise Blocked(
            f"finished, but damaged since: {'; '.join(problems)}",
            f"Restore the file, or train {stage} again: {request.command(stage, '--force')}",
        )
    return StagePlan(stage, "skip", "finished with this configuration and these inputs")


def _unfinished(request: Request, stage: Stage, manifest: Manifest, changes: list[str]) -> StagePlan:
    checkpoint = sealed_checkpoint(request.run.stage(stage))
    # With no process behind it, "running" means that it was killed before it could say so.
    state = (
        "was killed"
        if manifest.status == "running"
        else f"was {manifest.status}".replace("was failed", "failed")
    )
    aside = request.run.aside(stage)
    if request.fresh:
        return StagePlan(stage, "run", f"{state}; starts over because of --fresh", set_aside=aside)
    if changes and checkpoint:
        raise Blocked(
            f"{state} at {checkpoint.name}, and changed since: {'; '.join(changes)}",
            f"Restore these to resume, or start over: {request.command(stage, '--fresh')}",
        )
    if changes:
        return StagePlan(
            stage,
            "run",
            f"{state} before any checkpoint, and changed since: {'; '.join(changes)}",
            set_aside=aside,
        )
    where = f"from {checkpoint.name}" if checkpoint else "from its start, as it has no checkpoint yet"
    return StagePlan(stage, "resume", f"{state}; resumes {where}")


def _changes(
    request: Request, stage: Stage, manifest: Manifest, inputs: dict[Stage, Input], pending: frozenset[Stage]
) -> list[str]:
    """What differs from the run that `manifest` is about: keys of the configuration, and inputs."""
    changes = []
    if manifest.config_hash != stage_hash(request.config, stage):
        # There are none where a newer version of the schema only has more keys, at their defaults.
        changes += differences(manifest.config, request.config, stage)
    present = source_hashes(request.config, stage)
    for key, digest in manifest.sources.items():
        if present.get(key, digest) != digest:
            changes.append(f"{key}: the file's content is not what it was")
    for upstream in UPSTREAM[stage]:
        if upstream in pending:
            changes.append(f"{upstream} is to be trained before it")
        elif upstream not in manifest.inputs or manifest.inputs[upstream].sha256 != inputs[upstream].sha256:
            changes.append(f"it was trained on another {upstream} adapter than the present one")
    return changes


def _check_inputs(
    request: Request, stage: Stage, pending: frozenset[Stage]
) -> tuple[dict[Stage, Input], tuple[str, ...]]:
    """Verify every stage upstream; returns their adapters, and notes on settings that differ."""
    inputs: dict[Stage, Input] = {}
    notes: list[str] = []
    for upstream in UPSTREAM[stage]:
        if upstream in pending:
            continue
        manifest = _finished_manifest(request, upstream)
        notes += _check_settings(request, upstream, manifest)
        _check_lineage(request, upstream, manifest, inputs)
        inputs[upstream] = _intact(request, upstream, manifest)
    return inputs, tuple(notes)


def _finished_manifest(request: Request, upstream: Stage) -> Manifest:
    manifest = read_manifest(request.run.manifest(upstream))
    run_it = f"Run it first: {request.command(upstream)}"
    if manifest is None:
        raise Blocked(f"needs stage {upstream}, which has not run in {request.run.path}", run_it)
    if manifest.status == "running" and request.run.is_locked(upstream):
        raise Blocked(
            f"needs stage {upstream}, which is being run by {_owner(manifest)}", "Wait until it ends."
        )
    if manifest.status != "finished":
        state = "killed" if manifest.status == "running" else manifest.status
        raise Blocked(f"needs stage {upstream}, which did not finish ({state})", run_it)
    return manifest


def _check_settings(request: Request, upstream: Stage, manifest: Manifest) -> list[str]:
    """Its base and the adapter's shape must be the same; other settings may differ, and are told."""
    base = request.config.base_of(upstream)
    wanted, key = BaseModelId.of(base), f"{base.key}.model"
    again = f"Restore the setting, or train {upstream} again with this one: {request.command(upstream)}"
    if manifest.base != wanted:
        raise Blocked(f"{base.key} is {wanted}, but stage {upstream} was trained on {manifest.base}", again)
    there = source_hashes(request.config, upstream).get(key)
    if manifest.sources.get(key, there) != there:
        raise Blocked(
            f"the files of {wanted.model} are not those that stage {upstream} was trained on", again
        )
    if manifest.config_hash == stage_hash(request.config, upstream):
        return []
    changes = differences(manifest.config, request.config, upstream)
    shape = [change for change in changes if change.startswith("adapter.")]
    if shape:
        raise Blocked(f"stage {upstream} was trained with another adapter: {'; '.join(shape)}", again)
    return [f"stage {upstream} was trained with other settings than those given now: {'; '.join(changes)}"]


def _check_lineage(request: Request, upstream: Stage, manifest: Manifest, inputs: dict[Stage, Input]) -> None:
    """A stage upstream must itself have been trained on the adapters that are there now."""
    for source, used in manifest.inputs.items():
        if source in inputs and inputs[source].sha256 != used.sha256:
            raise Blocked(
                f"needs stage {upstream}, which was trained on another {source} adapter than the present one",
                f"Train {upstream} again: {request.command(upstream)}",
            )


def _intact(request: Request, upstream: Stage, manifest: Manifest) -> Input:
    folder = request.run.adapter(upstream)
    again = f"Restore the file, or train {upstream} again: {request.command(upstream, '--force')}"
    if manifest.output is None:
        raise Blocked(f"needs stage {upstream}, whose manifest lists no adapter", again)
    problems = damage(folder, manifest.output.files)
    if problems:
        raise Blocked(f"needs stage {upstream}, which is damaged: {'; '.join(problems)}", again)
    return Input(path=f"{upstream}/adapter", sha256=manifest.output.sha256)


def _owner(manifest: Manifest | None) -> str:
    return str(manifest.process) if manifest and manifest.process else "another process"


def through(first: Stage, last: Stage) -> list[Stage]:
    """The stages from `first` to `last`, both included; empty where `last` comes before `first`."""
    return list(STAGES[STAGES.index(first) : STAGES.index(last) + 1])
