"""Whether the upstream stages of a stage are finished, intact, and trained with the present settings."""

from __future__ import annotations

from configs.identity import differences, stage_hash
from configs.schema import Stage
from pipeline.planning.request import Request
from pipeline.state.manifest import Input, Manifest, damage, owner_of, read_manifest
from pipeline.state.stage_state import base_fault, state_of


class Blocked(Exception):
    """A stage cannot start or resume until the user acts.

    Attributes:
        why: what is wrong.
        remedy: what to do.
    """

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(why)
        self.why, self.remedy = why, remedy


def check_upstream(
    request: Request, stage: Stage, pending: frozenset[Stage]
) -> tuple[dict[Stage, Input], tuple[str, ...]]:
    """Verify every upstream stage of `stage` but those in `pending`.

    Returns:
        The adapter of each upstream stage, and a note on each one whose settings differ.

    Raises:
        Blocked: an upstream stage is unfinished, damaged, or does not fit the present settings.
        UserError: a manifest cannot be read.
    """
    inputs: dict[Stage, Input] = {}
    notes: list[str] = []
    for upstream in request.config.upstream(stage):
        if upstream == "sft" and (reason := request.config.sft.no_role):
            raise Blocked(
                f"sft.method: {request.config.sft.method} ends at SFT: {reason}",
                "Run only that with --until sft, or set sft.method to lora or adalora.",
            )
        if upstream in pending:
            continue
        manifest = _finished_manifest(request, upstream)
        notes += _check_settings(request, upstream, manifest)
        _check_lineage(request, upstream, manifest, inputs)
        inputs[upstream] = _intact_adapter(request, upstream, manifest)
    return inputs, tuple(notes)


def _finished_manifest(request: Request, upstream: Stage) -> Manifest:
    manifest = read_manifest(request.run.manifest(upstream))
    remedy = f"Run it first: {request.command(upstream)}"
    if manifest is None:
        raise Blocked(f"needs stage {upstream}, which has not run in {request.run.path}", remedy)
    state = state_of(manifest, request.run.is_locked)
    if state == "running":
        raise Blocked(
            f"needs stage {upstream}, which is being run by {owner_of(manifest)}", "Wait until it ends."
        )
    if state != "finished":
        raise Blocked(f"needs stage {upstream}, which did not finish ({state})", remedy)
    return manifest


def _check_settings(request: Request, upstream: Stage, manifest: Manifest) -> list[str]:
    """Refuse another base or another adapter shape; return notes if other settings or files differ."""
    remedy = f"Restore the setting, or train {upstream} again with this one: {request.command(upstream)}"
    present = request.source_hashes(upstream)
    if fault := base_fault(request.config, manifest, present):
        raise Blocked(fault, remedy)
    files = manifest.changed_sources(present)
    notes = [f"stage {upstream} was trained on other files: {'; '.join(files)}"] if files else []
    if manifest.config_hash == stage_hash(request.config, upstream):
        return notes
    changes = differences(manifest.config, request.config, upstream)
    adapter_changes = [change for change in changes if change.startswith("adapter.")]
    if adapter_changes:
        raise Blocked(
            f"stage {upstream} was trained with another adapter: {'; '.join(adapter_changes)}", remedy
        )
    settings = [f"stage {upstream} was trained with other settings: {'; '.join(changes)}"] if changes else []
    return settings + notes


def _check_lineage(request: Request, upstream: Stage, manifest: Manifest, inputs: dict[Stage, Input]) -> None:
    """Refuse an upstream stage that was itself trained on another adapter than the present one."""
    for source, used in manifest.inputs.items():
        if source in inputs and inputs[source].sha256 != used.sha256:
            raise Blocked(
                f"needs stage {upstream}, which was trained on another {source} adapter than the present one",
                f"Train {upstream} again: {request.command(upstream)}",
            )


def _intact_adapter(request: Request, upstream: Stage, manifest: Manifest) -> Input:
    remedy = f"Restore the file, or train {upstream} again: {request.command(upstream, '--force')}"
    if manifest.output is None:
        raise Blocked(f"needs stage {upstream}, whose manifest lists no adapter", remedy)
    problems = damage(request.run.adapter(upstream), manifest.output.files)
    if problems:
        raise Blocked(f"needs stage {upstream}, which is damaged: {'; '.join(problems)}", remedy)
    return Input(path=f"{upstream}/adapter", sha256=manifest.output.sha256)
