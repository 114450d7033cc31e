"""The manifest of a stage over one attempt: begun, then finished or failed."""

from __future__ import annotations

import secrets
from pathlib import Path

from configs.errors import UserError
from configs.identity import stage_hash
from configs.load import dump_experiment
from data.storage.files import read_json_lines, remove_partial_files
from data.storage.records import records
from pipeline.planning.plan import StagePlan, sealed_checkpoint
from pipeline.planning.request import Request
from pipeline.processes import endings
from pipeline.processes.streams import say
from pipeline.state.manifest import (
    BaseModelId,
    Manifest,
    Process,
    Record,
    fingerprint,
    library_versions,
    now,
    read_manifest,
)
from stages.context import Outcome, not_finite

RECORDS = ("metrics.jsonl", "samples.jsonl")


def begin_attempt(request: Request, plan: StagePlan, world: int) -> Manifest:
    """Prepare the stage's folder as `plan` says, and write a manifest with status `running`.

    Args:
        world: number of ranks.

    Raises:
        OSError: the run directory cannot be written.
    """
    run, stage = request.run, plan.stage
    previous = read_manifest(run.manifest(stage)) if plan.action == "resume" else None
    if plan.set_aside:
        say(f"stage {stage}: its old folder is kept as {run.set_aside(stage)}")
    run.stage(stage).mkdir(parents=True, exist_ok=True)
    remove_partial_files(run.stage(stage))
    endings.clear_notes(run.logs(stage))
    run.write_config(dump_experiment(request.config))
    manifest = Manifest(
        stage=stage,
        status="running",
        config_hash=stage_hash(request.config, stage),
        config=request.config.model_dump(mode="json"),
        base=BaseModelId.of(request.config.base_of(stage)),
        inputs=plan.inputs,
        sources=request.source_hashes(stage),
        wall_seconds=_previous_seconds(previous, run.stage(stage)) if previous else 0.0,
        world_size=world,
        versions=library_versions(),
        run_id=previous.run_id if previous else secrets.token_hex(4),
        process=Process.this(),
        started=previous.started if previous else now(),
        attempt_started=now(),
    )
    manifest.write(run.manifest(stage))
    return manifest


def restore_previous(request: Request, plan: StagePlan, config: str | None) -> str | None:
    """If an attempt failed before it left anything, restore the result that it set aside.

    Args:
        config: the text of the run's `config.yaml` before the attempt.

    Returns:
        A line about it for the user; None if the attempt's folder stays.
    """
    run, stage = request.run, plan.stage
    if plan.set_aside is None or not plan.set_aside.is_dir() or _left_something(run.stage(stage)):
        return None
    failed_attempt = run.restore(stage, plan.set_aside)
    if config is not None:
        run.write_config(config)
    return f"stage {stage}: its earlier result is back in place; the failed attempt is {failed_attempt}"


def _left_something(folder: Path) -> bool:
    """Whether an attempt left rankings, checkpoints, an adapter, or records of a step that it took."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    tops = {path.relative_to(folder).parts[0] for path in paths} - {"manifest.json", "logs", "wandb"}
    return any(name not in RECORDS or _took_a_step(folder / name) for name in tops)


def _took_a_step(record: Path) -> bool:
    """Whether a record has more than the evaluation and the samples before the first step."""
    return any(row["step"] > 0 for row in read_json_lines(record, ["step"], growing=True))


def finished(manifest: Manifest, outcome: Outcome, output: Path, seconds: float) -> Manifest:
    """The manifest after the attempt succeeds.

    Args:
        output: the folder that the stage leaves for other stages.
        seconds: duration of this attempt.

    Raises:
        FileNotFoundError: `output` is empty.
        UserError: a final metric is not finite.
    """
    if names := not_finite(outcome.metrics):
        raise UserError(
            f"stage {manifest.stage}: {names} of the result is not a finite number. metrics.jsonl and the "
            "log show since when. Lower the learning rate of this stage, or train the stage before it again. "
            "Then start over with --fresh."
        )
    content = fingerprint(output)
    if not content.files:
        raise FileNotFoundError(f"stage {manifest.stage} left nothing in {output}")
    wall_seconds = manifest.wall_seconds + seconds
    metrics = {name: float(value) for name, value in outcome.metrics.items()}
    return manifest.model_copy(
        update={
            "status": "finished",
            "base_digest": outcome.base_digest,
            "chat": outcome.chat,
            "compute_dtype": outcome.compute_dtype,
            "output": content,
            "records": {name: Record(**record) for name, record in records(output.parent).items()},
            "metrics": metrics | {"wall_seconds": wall_seconds},
            "wall_seconds": wall_seconds,
            "finished": now(),
        }
    )


def failed(manifest: Manifest, error: BaseException, seconds: float) -> Manifest:
    """The manifest after the attempt ends with `error`, `seconds` after its start."""
    return manifest.model_copy(
        update={
            "status": "interrupted" if endings.stopped(error) else "failed",
            "error": endings.one_line(error),
            "wall_seconds": manifest.wall_seconds + seconds,
            "finished": now(),
        }
    )


def _previous_seconds(previous: Manifest, folder: Path) -> float:
    """Seconds spent by earlier attempts. A killed attempt counts up to its newest checkpoint."""
    checkpoint = sealed_checkpoint(folder)
    if previous.status != "running" or checkpoint is None:
        return previous.wall_seconds
    return previous.wall_seconds + max(0.0, checkpoint.stat().st_mtime - previous.attempt_started.timestamp())
