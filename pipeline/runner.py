"""One stage in one process: decide, open its folder, call its recipe, and record what came of it.

Every rank runs this. Rank 0 alone decides and writes; the others learn from it over the process group.
"""

from __future__ import annotations

import importlib
import logging
import secrets
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console

from configs.errors import UserError
from configs.load import dump_experiment, stage_hash
from configs.schema import STAGES, Experiment, Stage
from pipeline import quiet
from pipeline.batches import check_batches
from pipeline.display import make_display
from pipeline.manifest import (
    BaseModelId,
    Manifest,
    Process,
    fingerprint,
    library_versions,
    now,
    read_manifest,
    source_hashes,
)
from pipeline.plan import Request, StagePlan, newest_checkpoint, plan_stage
from pipeline.rundir import RunDirectory, write_text
from pipeline.summary import print_summary
from pipeline.tracking import FileSink, NullReporter, Reporter
from pipeline.wandb_sink import make_wandb_sink, wandb_mode
from stages.context import Context, Outcome
from stages.job import rank_and_world

logger = logging.getLogger("tristage")

# When one and the same error strikes all ranks, rank 0 is to report it. The launcher ends the other
# ranks as soon as rank 0 exits; a rank that is still there after this long has something of its own to say.
RANK_ZERO_SPEAKS_FIRST_SECONDS = 4.0


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


@dataclass(frozen=True)
class Order:
    """What rank 0 tells the others."""

    inputs: dict[str, Path]
    resume: bool


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
        The exit status: 0 done, 2 the user has to mend something, 130 or 143 interrupted, 1 failed.
    """
    request = Request(config, RunDirectory(run_dir), arguments, force, fresh)
    rank = 0
    try:
        rank, world = rank_and_world()
        with _signals_raise():
            if rank == 0:
                return _lead(request, stage, world, hint)
            return _follow(request, stage, rank)
    except (Exception, KeyboardInterrupt, Interrupted) as error:
        _report_error(error, rank)
        return _exit_code(error)


def _lead(request: Request, stage: Stage, world: int, hint: bool) -> int:
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
                _join(request.config)
                _broadcast(None)
            return 0
        wandb_mode(request.config)  # a WANDB_MODE that is none is told before an old result is set aside
        _join(request.config)
        manifest = _open(request, plan, world)
        quiet.capture(run.stage(stage) / "logs", rank=0)
        order = Order(
            {name: run.path / used.path for name, used in plan.inputs.items()}, plan.action == "resume"
        )
        if world > 1:
            _broadcast(order)
        reporter = _reporter(request, manifest, order.resume)
        manifest = _attempt(request, manifest, _context(request, stage, order, reporter), reporter)
        _print_end(request, manifest, hint)
    _leave()
    return 0


def _follow(request: Request, stage: Stage, rank: int) -> int:
    """Every other rank."""
    _join(request.config)
    order = _broadcast(None)
    if order is None:
        return 0
    quiet.capture(request.run.stage(stage) / "logs", rank)
    _recipe(stage)(_context(request, stage, order, NullReporter()))
    _leave()
    return 0


def _open(request: Request, plan: StagePlan, world: int) -> Manifest:
    """Make the stage's folder ready and its manifest say `running`."""
    run, stage = request.run, plan.stage
    old = read_manifest(run.manifest(stage)) if plan.action == "resume" else None
    if plan.set_aside:
        kept = run.set_aside(stage)
        print(f"stage {stage}: its old folder is kept as {kept}", flush=True)
    run.stage(stage).mkdir(parents=True, exist_ok=True)
    write_text(run.config_file, dump_experiment(request.config))
    manifest = Manifest(
        stage=stage,
        status="running",
        config_hash=stage_hash(request.config, stage),
        config=request.config.model_dump(mode="json"),
        base=BaseModelId.of(request.config.base),
        inputs=plan.inputs,
        sources=source_hashes(request.config, stage),
        wall_seconds=_seconds_before(old, run.stage(stage)) if old else 0.0,
        world_size=world,
        versions=library_versions(),
        wandb_id=(old and old.wandb_id) or secrets.token_hex(4),
        process=Process.this(),
        started=old.started if old else now(),
        attempt_started=now(),
    )
    manifest.write(run.manifest(stage))
    return manifest


def _seconds_before(old: Manifest, folder: Path) -> float:
    """Seconds spent by earlier attempts; of one that was killed, up to its newest checkpoint."""
    checkpoint = newest_checkpoint(folder)
    if old.status != "running" or checkpoint is None:
        return old.wall_seconds
    return old.wall_seconds + max(0.0, checkpoint.stat().st_mtime - old.attempt_started.timestamp())


def _reporter(request: Request, manifest: Manifest, resume: bool) -> Reporter:
    folder = request.run.stage(manifest.stage)
    wandb = make_wandb_sink(request.config, manifest, folder)
    reporter = Reporter(make_display(), [FileSink(folder)] + ([wandb] if wandb else []))
    if resume and newest_checkpoint(folder) is None:
        reporter.rewind(-1)
    return reporter


def _context(request: Request, stage: Stage, order: Order, tracker: Reporter | NullReporter) -> Context:
    return Context(
        config=request.config,
        stage=stage,
        folder=request.run.stage(stage),
        inputs=order.inputs,
        tracker=tracker,
        resume=order.resume,
    )


def _attempt(request: Request, manifest: Manifest, context: Context, reporter: Reporter) -> Manifest:
    """Call the recipe; the manifest tells how it ended, whatever happens."""
    path = request.run.manifest(manifest.stage)
    begin = time.monotonic()
    try:
        outcome = _recipe(manifest.stage)(context)
        ended = _finished(manifest, outcome, request.run.adapter(manifest.stage), time.monotonic() - begin)
    except BaseException as error:
        seconds = manifest.wall_seconds + time.monotonic() - begin
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        status = "interrupted" if stopped else "failed"
        failure = {"status": status, "error": _one_line(error), "wall_seconds": seconds, "finished": now()}
        manifest.model_copy(update=failure).write(path)
        reporter.close(_exit_code(error))
        raise
    ended.write(path)
    reporter.finish(ended, request.run.adapter(manifest.stage))
    return ended


def _finished(manifest: Manifest, outcome: Outcome, adapter: Path, seconds: float) -> Manifest:
    output = fingerprint(adapter)
    if not output.files:
        raise FileNotFoundError(f"stage {manifest.stage} left no adapter in {adapter}")
    total = manifest.wall_seconds + seconds
    return manifest.model_copy(
        update={
            "status": "finished",
            "output": output,
            "metrics": {name: float(value) for name, value in outcome.metrics.items()}
            | {"wall_seconds": total},
            "wall_seconds": total,
            "finished": now(),
        }
    )


def _print_end(request: Request, manifest: Manifest, hint: bool) -> None:
    following = STAGES[STAGES.index(manifest.stage) + 1 :]
    command = request.command(following[0]) if following else f"tristage report {request.arguments}".strip()
    adapter = str(request.run.adapter(manifest.stage))
    print_summary(Console(), manifest, adapter, command if hint else None)


def _recipe(stage: Stage) -> Callable[[Context], Outcome]:
    recipe: Callable[[Context], Outcome] = importlib.import_module(f"stages.{stage}").run
    return recipe


def _join(config: Experiment) -> None:
    """Enter the process group of the job."""
    from stages.engine import init_distributed

    init_distributed(config.deepspeed)


def _leave() -> None:
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _broadcast(order: Order | None) -> Order | None:
    """Rank 0's order, on every rank."""
    import torch.distributed

    orders = [order]
    torch.distributed.broadcast_object_list(orders, src=0)
    return orders[0]


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into Interrupted and ignore those after it.

    Ctrl-C reaches a rank twice, from the terminal and from the launcher; the second must not disturb
    the writing of the manifest.
    """
    watched = (signal.SIGINT, signal.SIGTERM)

    def stop(signum: int, _frame: FrameType | None) -> None:
        for each in watched:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(signum)

    before = {each: signal.signal(each, stop) for each in watched}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, UserError):
        return 2
    if isinstance(error, Interrupted):
        return error.exit_code
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _report_error(error: BaseException, rank: int) -> None:
    """Say what happened: a message for the user's errors, a traceback for the program's."""
    logger.info("ended by %s", _one_line(error), exc_info=error)
    if isinstance(error, Interrupted | KeyboardInterrupt):
        if rank == 0:
            print("interrupted; the same command resumes", file=sys.stderr, flush=True)
        return
    if rank != 0:
        time.sleep(RANK_ZERO_SPEAKS_FIRST_SECONDS)
        print(f"rank {rank}:", file=sys.stderr)
    if isinstance(error, UserError):
        print(f"error: {error}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
