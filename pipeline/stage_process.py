"""One stage in one process: decide, open its folder, call its recipe, and record what came of it.

Every rank runs this. Rank 0 alone decides and writes; the others learn from it over the process group.
"""

from __future__ import annotations

import importlib
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from configs.errors import UserError
from configs.identity import stage_hash
from configs.load import dump_experiment
from configs.schema import Experiment, Stage
from data.storage.files import sweep
from data.storage.records import records
from pipeline.planning.batches import check_batches
from pipeline.planning.plan import Request, StagePlan, plan_stage, sealed_checkpoint
from pipeline.processes import endings, logs
from pipeline.processes.signals import Signals, handled_by, watched_signals
from pipeline.state.manifest import (
    BaseModelId,
    Manifest,
    Process,
    Record,
    fingerprint,
    library_versions,
    now,
    read_manifest,
    source_hashes,
)
from pipeline.state.run_directory import RunDirectory
from pipeline.terminal.progress import make_display
from pipeline.terminal.summary import print_summary
from pipeline.tracking.metric_files import FileSink
from pipeline.tracking.reporter import NullReporter, Reporter
from pipeline.tracking.wandb_sink import check_mode, make_wandb_sink
from stages.context import Context, Interrupted, Outcome, Paused
from stages.distributed.environment import rank_and_world

if TYPE_CHECKING:  # what a user has to mend is told before the slow import of torch
    from stages.distributed.ranks import Ranks


@dataclass(frozen=True)
class StageOrder:
    """What rank 0 tells the others."""

    inputs: dict[str, Path]
    bases: dict[Stage, str]
    resume: bool
    run_id: str


def run_stage(
    config: Experiment,
    stage: Stage,
    run_dir: Path,
    *,
    force: bool = False,
    fresh: bool = False,
    arguments: str = "",
    hint: bool = True,
) -> int:
    """Run one stage to its end, resume it, or find that there is nothing to do.

    Args:
        arguments: `--config`, `--run-dir` and overrides as given, for the commands that are suggested.
        hint: end with the command of the next stage.

    Returns:
        The exit status: 0 done, 2 the user has to mend something, 130 (SIGINT) or 143 (SIGTERM)
        interrupted, which the same command resumes, 1 failed.
    """
    request = Request(config, RunDirectory(run_dir), arguments, force, fresh)
    rank = 0
    with watched_signals() as signals:
        try:
            rank, world = rank_and_world()
            signals.announce = rank == 0
            if rank == 0:
                return _lead(request, stage, world, hint, signals)
            return _follow(request, stage, rank, signals)
        except (Exception, KeyboardInterrupt, Interrupted) as caught:
            error = endings.explained(caught, request.run.stage(stage))
            # Once one rank has ended, the launcher sends the others SIGTERM: rank 0 is to be heard first.
            with handled_by(signal.SIG_DFL if rank else signal.SIG_IGN):
                if rank:
                    endings.leave_note(request.run.logs(stage), rank, error)
                endings.report(error, rank)
            return endings.exit_code(error)


def _lead(request: Request, stage: Stage, world: int, hint: bool, signals: Signals) -> int:
    """Rank 0."""
    run = request.run
    before = read_manifest(run.manifest(stage))
    owner = str(before.process) if before and before.process else "another process"
    with run.lock(stage, owner):
        plan = plan_stage(request, stage)
        if plan.action == "blocked":
            raise UserError(f"stage {stage}: {plan.why}.\n{plan.remedy}")
        check_batches(request.config, stage, world)
        for line in plan.notes:
            print(line, flush=True)
        print(f"stage {stage}: {plan.why}", flush=True)
        if plan.action == "skip":
            if world > 1:
                with _process_group(request.config) as ranks:
                    ranks.broadcast(None)
            return 0
        check_mode()  # a WANDB_MODE that is none is told before an old result is set aside
        with _process_group(request.config) as ranks:
            manifest = _open(request, plan, world)
            logs.open_logs(run.logs(stage), rank=0)
            order = _order(request, plan, manifest)
            ranks.broadcast(order)
            peers = ranks.gather([Process.this()])
            reporter = _reporter(request, manifest, order.resume)
            context = _context(request, stage, order, ranks, reporter, signals)
            manifest = _attempt(request, manifest, context, reporter, peers)
        _print_end(request, manifest, hint)
    return 0


def _follow(request: Request, stage: Stage, rank: int, signals: Signals) -> int:
    """Every other rank."""
    with _process_group(request.config) as ranks:
        order = ranks.broadcast(None)
        if order is not None:
            logs.open_logs(request.run.logs(stage), rank)
            ranks.gather([Process.this()])
            _recipe(stage)(_context(request, stage, order, ranks, NullReporter(), signals))
    return 0


@contextmanager
def _process_group(config: Experiment) -> Iterator[Ranks]:
    """Within, this process is one of the ranks of its job.

    A rank that fails does not leave: leaving may wait for the other ranks. A rank that pauses first waits for
    them: the launcher ends the other ranks as soon as one has ended.
    """
    from stages.distributed.process_group import init_distributed, leave_process_group  # imports torch

    ranks = init_distributed(config.deepspeed)
    try:
        yield ranks
    except Paused:
        ranks.barrier()
        leave_process_group()
        raise
    leave_process_group()


def _open(request: Request, plan: StagePlan, world: int) -> Manifest:
    """Make the stage's folder ready and its manifest say `running`."""
    run, stage = request.run, plan.stage
    old = read_manifest(run.manifest(stage)) if plan.action == "resume" else None
    if plan.set_aside:
        kept = run.set_aside(stage)
        print(f"stage {stage}: its old folder is kept as {kept}", flush=True)
    run.stage(stage).mkdir(parents=True, exist_ok=True)
    sweep(run.stage(stage))
    endings.clear_notes(run.logs(stage))
    run.write_config(dump_experiment(request.config))
    manifest = Manifest(
        stage=stage,
        status="running",
        config_hash=stage_hash(request.config, stage),
        config=request.config.model_dump(mode="json"),
        base=BaseModelId.of(request.config.base_of(stage)),
        inputs=plan.inputs,
        sources=source_hashes(request.config, stage),
        wall_seconds=_seconds_before(old, run.stage(stage)) if old else 0.0,
        world_size=world,
        versions=library_versions(),
        run_id=old.run_id if old else secrets.token_hex(4),
        process=Process.this(),
        started=old.started if old else now(),
        attempt_started=now(),
    )
    manifest.write(run.manifest(stage))
    return manifest


def _order(request: Request, plan: StagePlan, manifest: Manifest) -> StageOrder:
    manifests = {name: read_manifest(request.run.manifest(name)) for name in plan.inputs}
    return StageOrder(
        inputs={name: request.run.path / used.path for name, used in plan.inputs.items()},
        bases={name: each.base_digest for name, each in manifests.items() if each and each.base_digest},
        resume=plan.action == "resume",
        run_id=manifest.run_id,
    )


def _seconds_before(old: Manifest, folder: Path) -> float:
    """Seconds spent by earlier attempts; of one that was killed, up to its newest checkpoint."""
    checkpoint = sealed_checkpoint(folder)
    if old.status != "running" or checkpoint is None:
        return old.wall_seconds
    return old.wall_seconds + max(0.0, checkpoint.stat().st_mtime - old.attempt_started.timestamp())


def _reporter(request: Request, manifest: Manifest, resume: bool) -> Reporter:
    folder = request.run.stage(manifest.stage)
    wandb = make_wandb_sink(request.config, manifest, folder)
    reporter = Reporter(make_display(), [FileSink(folder)] + ([wandb] if wandb else []))
    if resume and sealed_checkpoint(folder) is None:
        reporter.rewind(-1)
    return reporter


def _context(
    request: Request,
    stage: Stage,
    order: StageOrder,
    ranks: Ranks,
    tracker: Reporter | NullReporter,
    signals: Signals,
) -> Context:
    return Context(
        config=request.config,
        stage=stage,
        folder=request.run.stage(stage),
        inputs=order.inputs,
        bases=order.bases,
        tracker=tracker,
        resume=order.resume,
        ranks=ranks,
        run_id=order.run_id,
        signals_deferred=signals.deferred,
    )


def _attempt(
    request: Request, manifest: Manifest, context: Context, reporter: Reporter, peers: Sequence[Process]
) -> Manifest:
    """Call the recipe; the manifest tells how it ended, whatever happens.

    Raises:
        RankFailed: another rank is why it could not go on.
    """
    path, logs = request.run.manifest(manifest.stage), request.run.logs(manifest.stage)
    begin = time.monotonic()

    def record(error: BaseException) -> None:
        failure = {
            "status": "interrupted" if endings.stopped(error) else "failed",
            "error": endings.one_line(error),
            "wall_seconds": manifest.wall_seconds + time.monotonic() - begin,
            "finished": now(),
        }
        with suppress(OSError):  # where the disk is full; the stage then looks as if it had been killed
            manifest.model_copy(update=failure).write(path)

    try:
        with endings.speaking_when_stuck(logs, peers, record):
            outcome = _recipe(manifest.stage)(context)
        ended = _finished(manifest, outcome, request.run.output(manifest.stage), time.monotonic() - begin)
    except BaseException as caught:
        with handled_by(signal.SIG_IGN):
            error = endings.cause(caught, logs, peers)
            error = endings.explained(error, request.run.stage(manifest.stage))
            record(error)
            reporter.close(endings.exit_code(error))
        raise error from None
    ended.write(path)
    reporter.finish(ended, request.run.output(manifest.stage))
    return ended


def _finished(manifest: Manifest, outcome: Outcome, folder: Path, seconds: float) -> Manifest:
    output = fingerprint(folder)
    if not output.files:
        raise FileNotFoundError(f"stage {manifest.stage} left nothing in {folder}")
    total = manifest.wall_seconds + seconds
    return manifest.model_copy(
        update={
            "status": "finished",
            "base_digest": outcome.base_digest,
            "output": output,
            "records": {name: Record(**each) for name, each in records(folder.parent).items()},
            "metrics": {name: float(value) for name, value in outcome.metrics.items()}
            | {"wall_seconds": total},
            "wall_seconds": total,
            "finished": now(),
        }
    )


def _print_end(request: Request, manifest: Manifest, hint: bool) -> None:
    nexts: dict[Stage, Stage] = {"sft": "rm", "rm": "ppo"}
    following = nexts.get(manifest.stage)
    command = request.command(following) if following else f"tristage report {request.arguments}".strip()
    if manifest.stage == "best":
        command = _fine_tune(request)
    print_summary(Console(), manifest, request.run.output(manifest.stage), command if hint else None)


def _fine_tune(request: Request) -> str:
    """The command that trains on what `best` has picked, in a run directory of its own."""
    run = request.run
    aim = Request(request.config, run, f"--config {run.config_file} --run-dir {run.path}-best")
    return f"{aim.command('sft')} data.sft.path={run.output('best') / 'train.jsonl'}"


def _recipe(stage: Stage) -> Callable[[Context], Outcome]:
    recipe: Callable[[Context], Outcome] = importlib.import_module(f"stages.{stage}").run
    return recipe
