"""`tristage run`: one stage after another, each under its own `deepspeed` launch."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from configs.schema import Experiment, Stage
from launch.deepspeed_command import Launch
from pipeline.planning.batches import check_batches
from pipeline.planning.faults import Faults
from pipeline.planning.people import check_people
from pipeline.planning.plan import StagePlan
from pipeline.planning.request import Request
from pipeline.processes.hangs import crash_of
from pipeline.processes.parent_watch import SECONDS_TO_STOP
from pipeline.processes.signals import SECONDS_TO_REPEAT, handled_by
from pipeline.processes.streams import say
from pipeline.state.manifest import read_manifest


def check_start(config: Experiment, plans: Sequence[StagePlan], launch: Launch, faults: Faults) -> int:
    """Add to `faults` why a stage is blocked, or cannot start on the devices here; returns the ranks."""
    for plan in plans:
        if plan.action != "wait":
            with faults.of("stages"):
                plan.check_runnable()
    world, starting = 1, [plan.stage for plan in plans if plan.action != "skip"]
    with faults.of("machine"):
        world = launch.world()
        if starting:
            launch.check_devices()
    for stage in starting:
        with faults.of("machine"):
            check_batches(config, stage, world)
    return world


def run_all(request: Request, launch: Launch, plans: Sequence[StagePlan]) -> int:
    """Run or resume each planned stage in turn; skip those that are finished.

    A stage's own process plans it again, under the stage's lock.

    Returns:
        0, or the exit status of the first stage that does not finish.

    Raises:
        Waiting: the next stage waits for people. All earlier ones are done.
        UserError: before any stage starts, if a stage is blocked, its batches do not divide by the number of
            ranks, or this machine has too few devices.
    """
    faults = Faults()
    check_start(request.config, plans, launch, faults)
    faults.refuse()
    for plan in plans:
        if plan.action == "skip":
            say(f"stage {plan.stage}: {plan.why}")
            continue
        check_people(request, plan.stage, resumes=plan.action == "resume")
        if status := _run_one(request, launch, plan.stage):
            return status
    return 0


def _run_one(request: Request, launch: Launch, stage: Stage) -> int:
    run = request.run
    status = _launch(launch, stage, run.manifest(stage))
    manifest, why = read_manifest(run.manifest(stage)), crash_of(run.logs(stage), 0) if status > 128 else None
    if status == 0 and (manifest is None or manifest.status != "finished"):
        status, why = 1, _ended_early(request, stage)  # a launcher that is killed exits with 0, too
    if status:
        logs = run.logs(stage)
        reason = f" ({why})" if why else ""
        say(f"stage {stage} ended with status {status}{reason}; its logs are in {logs}", error=True)
    return status


def _ended_early(request: Request, stage: Stage) -> str:
    """Why a stage has no result although its process ended with status 0."""
    named = [
        f"{key}: {code if isinstance(code, str) else code.source}"
        for key, code in request.config.users_code([stage])
    ]
    of_theirs = f", or code that it called ended it: {', '.join(named)}" if named else ""
    return f"its process ended with status 0 before the stage was done: somebody stopped it{of_theirs}"


def _launch(launch: Launch, stage: Stage, manifest: Path) -> int:
    """Run one stage to its end. A signal to this process first stops all processes of the stage."""
    process = subprocess.Popen(launch.command(stage), env=launch.environment(), start_new_session=True)
    with _forward_signals(process.pid, manifest) as received:
        status = process.wait()
        if received:
            _wait_for_group(process.pid)
            return 128 + received[0]
    return readable_status(status)


def readable_status(status: int) -> int:
    """128 + N for a process that signal N ended, as shells have it.

    Popen gives -N. The launcher exits with the -N of its first failed rank, which the system makes 256 - N.
    """
    if status < 0:
        return 128 - status
    return 128 + 256 - status if 256 - signal.NSIG < status < 255 else status  # ssh fails with 255


@contextmanager
def _forward_signals(group: int, manifest: Path) -> Iterator[list[int]]:
    """Forward SIGINT and SIGTERM to the processes of a stage; yields the list of received signals.

    The first signal goes only to rank 0. Rank 0 ends training together with the other ranks, however long
    their current step takes. The launcher would kill them after 30 seconds, and the `deepspeed` command
    would die and leave them behind. Before rank 0 exists, and from the second signal on, all processes of the
    group get SIGTERM.
    """
    received: list[int] = []
    first = 0.0

    def forward(signum: int, _frame: FrameType | None) -> None:
        nonlocal first
        first = first or time.monotonic()
        if received and time.monotonic() - first < SECONDS_TO_REPEAT:
            return  # programs such as `timeout` send every signal twice
        rank = None if received else _rank_zero(group, manifest)
        received.append(signum)
        with suppress(ProcessLookupError):
            if rank is None:
                os.killpg(group, signal.SIGTERM)
            else:
                os.kill(rank, signum)

    with handled_by(forward):
        yield received


def _rank_zero(group: int, manifest: Path) -> int | None:
    """The process id of a stage's rank 0 from its manifest; None if it is not in the process group."""
    content = read_manifest(manifest)
    if content is None or content.process is None or content.process.host != socket.gethostname():
        return None
    with suppress(ProcessLookupError):
        if os.getpgid(content.process.pid) == group:
            return content.process.pid
    return None


def _wait_for_group(group: int) -> None:
    """Wait until no process of the group is left; kill the rest after SECONDS_TO_STOP."""
    deadline = time.monotonic() + SECONDS_TO_STOP
    while _alive(group):
        if time.monotonic() > deadline:
            os.killpg(group, signal.SIGKILL)
            return
        time.sleep(0.1)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
