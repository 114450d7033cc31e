"""One stage in one process: plan it, open its folder, call its recipe, and record the result.

Every rank runs this. Only rank 0 decides and writes. The other ranks receive its decision over the process
group.
"""

from __future__ import annotations

import importlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from configs.schema import Experiment, Stage
from pipeline.planning.batches import check_batches
from pipeline.planning.plan import StagePlan, plan_stage, sealed_checkpoint
from pipeline.planning.preflight import check_files
from pipeline.planning.request import TRISTAGE, Request
from pipeline.planning.stage_checks import check_feedback
from pipeline.processes import endings, logs
from pipeline.processes.signals import Signals, handled_by, watched_signals
from pipeline.processes.streams import say
from pipeline.stage_record import begin_attempt, failed, finished, restore_previous
from pipeline.state.manifest import Manifest, Process, owner_of, read_manifest
from pipeline.terminal.console import SafeConsole
from pipeline.terminal.progress import make_display
from pipeline.terminal.summary import print_summary
from pipeline.tracking.metric_files import FileSink
from pipeline.tracking.reporter import NullReporter, Reporter
from pipeline.tracking.wandb_sink import check_mode, make_wandb_sink
from stages.context import Context, Interrupted, Outcome, Paused
from stages.distributed.environment import check_accelerator, rank_and_world

if TYPE_CHECKING:  # errors that the user must fix are reported before the slow import of torch
    from stages.distributed.ranks import Ranks


@dataclass(frozen=True)
class StageOrder:
    """What rank 0 sends to the other ranks; the fields are those of `Context`."""

    inputs: dict[str, Path]
    bases: dict[Stage, str]
    sources: dict[str, str]
    resume: bool
    run_id: str


def run_stage(request: Request, stage: Stage) -> int:
    """Run one stage to its end or resume it. If it is finished, do nothing.

    Returns:
        The exit status: 0 finished, 1 failed, 2 the user must fix something, 130 (SIGINT) or 143 (SIGTERM)
        interrupted. After an interruption, the same command resumes.
    """
    rank = 0
    with watched_signals() as signals:
        try:
            rank, world = rank_and_world()
            check_accelerator()
            signals.announce = rank == 0
            if rank == 0:
                _run_rank_zero(request, stage, world, signals)
            else:
                _run_other_rank(request, stage, rank, signals)
            return 0
        except (Exception, KeyboardInterrupt, Interrupted) as caught:
            signals.over = True
            error = endings.explained(caught, request.run.stage(stage))
            # Once one rank ends, the launcher sends SIGTERM to the others. Rank 0 reports first.
            with handled_by(signal.SIG_DFL if rank else signal.SIG_IGN):
                if rank:
                    endings.leave_note(request.run.logs(stage), rank, error)
                endings.report(error, rank)
            return endings.exit_code(error)


def _run_rank_zero(request: Request, stage: Stage, world: int, signals: Signals) -> None:
    """Rank 0: decide, run the recipe, and record the result."""
    run = request.run
    with run.lock(stage, owner_of(read_manifest(run.manifest(stage)))):
        plan = _checked_plan(request, stage, world)
        if plan.action == "skip":
            if world > 1:
                with _process_group(request.config) as ranks:
                    ranks.broadcast(None)
            return
        with _process_group(request.config) as ranks:
            config_before = run.read_config()
            manifest = begin_attempt(request, plan, world)
            logs.open_logs(run.logs(stage), rank=0)
            order = _order(request, plan, manifest)
            ranks.broadcast(order)
            peers = ranks.gather([Process.this()])
            reporter = _reporter(request, manifest, order.resume, lambda: signals.arrived)
            context = _context(request, stage, order, ranks, reporter, signals)
            try:
                manifest = _attempt(request, manifest, context, reporter, peers, signals)
            except Exception:
                if note := restore_previous(request, plan, config_before):
                    say(note, error=True)
                raise
        _print_end(request, manifest)


def _run_other_rank(request: Request, stage: Stage, rank: int, signals: Signals) -> None:
    """Every other rank: check the files of its machine, then run the recipe with rank 0."""
    check_files(request.config, [plan_stage(request, stage)])
    with _process_group(request.config) as ranks:
        order = ranks.broadcast(None)
        if order is not None:
            logs.open_logs(request.run.logs(stage), rank)
            ranks.gather([Process.this()])
            _recipe(stage)(_context(request, stage, order, ranks, NullReporter(), signals))


def _checked_plan(request: Request, stage: Stage, world: int) -> StagePlan:
    """Plan the stage and print the decision.

    Raises:
        UserError: the stage is blocked, a file is missing, a function of the user's fails, or a setting does
            not fit.
    """
    plan = plan_stage(request, stage)
    plan.check_runnable()
    check_files(request.config, [plan])
    check_batches(request.config, stage, world)
    if request.caller != TRISTAGE:  # which checked all stages before it started the first
        _check_alone(request.config, plan)
    for line in plan.notes:
        say(line)
    say(f"stage {stage}: {plan.why}")
    if plan.action != "skip":
        check_mode()  # W&B's mode is checked before an old result is set aside
    return plan


def _check_alone(config: Experiment, plan: StagePlan) -> None:
    """Check what one stage will read and call, as `tristage` does for all stages."""
    if plan.action == "skip":
        return
    check_feedback(config, plan.stage)
    from stages.preflight import check_material  # imports torch

    check_material(config, plan.stage)


@contextmanager
def _process_group(config: Experiment) -> Iterator[Ranks]:
    """Join the process group of the job as one of its ranks.

    A rank that fails does not leave the group: leaving may wait for the other ranks. A rank that pauses first
    waits for them: the launcher ends the other ranks as soon as one has ended.
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


def _order(request: Request, plan: StagePlan, manifest: Manifest) -> StageOrder:
    upstream = {stage: read_manifest(request.run.manifest(stage)) for stage in plan.inputs}
    return StageOrder(
        inputs={stage: request.run.path / adapter.path for stage, adapter in plan.inputs.items()},
        bases={stage: used.base_digest for stage, used in upstream.items() if used and used.base_digest},
        sources=manifest.sources,
        resume=plan.action == "resume",
        run_id=manifest.run_id,
    )


def _reporter(request: Request, manifest: Manifest, resume: bool, stopping: Callable[[], bool]) -> Reporter:
    folder = request.run.stage(manifest.stage)
    wandb = make_wandb_sink(request.config, manifest, folder, stopping)
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
        sources=order.sources,
        tracker=tracker,
        resume=order.resume,
        ranks=ranks,
        run_id=order.run_id,
        signals_deferred=signals.deferred,
    )


def _attempt(
    request: Request,
    manifest: Manifest,
    context: Context,
    reporter: Reporter,
    peers: Sequence[Process],
    signals: Signals,
) -> Manifest:
    """Call the recipe and write the manifest of the result, whatever happens.

    Raises:
        RankFailed: another rank failed, and this one cannot continue without it.
    """
    run, stage = request.run, manifest.stage
    start = time.monotonic()

    def record(error: BaseException) -> None:
        with suppress(OSError):  # on a full disk, the stage then looks as if it was killed
            failed(manifest, error, time.monotonic() - start).write(run.manifest(stage))

    try:
        with endings.reporting_when_stuck(run.logs(stage), peers, record):
            outcome = _recipe(stage)(context)
        result = finished(manifest, outcome, run.output(stage), time.monotonic() - start)
    except BaseException as caught:
        signals.over = True  # first, and not by a call: the launcher's SIGTERM may come with the error
        error = endings.explained(endings.cause(caught, run.logs(stage), peers), run.stage(stage))
        record(error)
        reporter.close(endings.exit_code(error))
        raise error from None
    result.write(run.manifest(stage))
    reporter.finish(result, run.output(stage))
    return result


def _print_end(request: Request, manifest: Manifest) -> None:
    """Print the result. `tristage run` continues by itself, so it needs no next command."""
    command = None if request.caller == TRISTAGE else request.next_command(manifest.stage)
    print_summary(SafeConsole(), manifest, request.run.output(manifest.stage), command)


def _recipe(stage: Stage) -> Callable[[Context], Outcome]:
    recipe: Callable[[Context], Outcome] = importlib.import_module(f"stages.{stage}").run
    return recipe
