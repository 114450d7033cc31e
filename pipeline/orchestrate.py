"""`tristage run`: one stage after another, each under its own `deepspeed` launch."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from configs.errors import UserError
from configs.schema import Stage
from pipeline.batches import check_batches
from pipeline.lifeline import SECONDS_TO_STOP
from pipeline.manifest import read_manifest
from pipeline.plan import Request, plan_stage, plan_stages
from pipeline.signals import SECONDS_TO_REPEAT, handled_by

SLOTS = re.compile("slots=[1-9][0-9]{0,5}")


@dataclass(frozen=True)
class Launch:
    """How stages are started.

    Attributes:
        script: `launch/run_stage.py`.
        words: `--config`, `--run-dir`, overrides and switches to pass on.
        accelerators: per machine; None for all there are, or one process on a machine without any.
        hostfile: machines and their slots, as DeepSpeed reads it; None for this machine alone.
    """

    script: Path
    words: Sequence[str]
    accelerators: int | None = None
    hostfile: Path | None = None

    def world(self) -> int:
        """Number of ranks."""
        if self.hostfile is not None:
            return sum(min(slots, self.accelerators or slots) for slots in read_slots(self.hostfile))
        return self.accelerators or max(1, count_accelerators())

    def environment(self) -> dict[str, str]:
        """This process's environment, with its own `bin` first and the launcher told what it would guess."""
        environment = dict(os.environ)
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
        if self.hostfile is None and not count_accelerators():
            environment.setdefault("DS_ACCELERATOR", "cpu")
        return environment

    def check_devices(self) -> None:
        """Raises UserError: there are not so many devices here, or DeepSpeed cannot be told which to use."""
        found = 0 if self.hostfile is not None else count_accelerators()
        if not found:
            return
        if self.accelerators and self.accelerators > found:
            raise UserError(
                f"--num-accelerators: {self.accelerators}, but there are {found}. Ask for {found} at most."
            )
        for device in _named_devices():
            if not device.isdigit():
                raise UserError(
                    f"CUDA_VISIBLE_DEVICES: deepspeed takes numbers alone, not {device:.60}. Give those "
                    "of `nvidia-smi -L`, or start stages by torchrun or plain python."
                )

    def command(self, stage: Stage) -> list[str]:
        """The `deepspeed` command line of one stage."""
        # The launcher's own talk, and its report of a failing rank, say nothing that the rank does not.
        launcher = [str(Path(sys.executable).parent / "deepspeed"), "--log_level", "critical"]
        if self.hostfile is not None:
            launcher += ["--hostfile", str(self.hostfile)]
            launcher += ["--num_accelerators", str(self.accelerators)] if self.accelerators else []
        else:
            launcher += ["--master_port", str(free_port()), *self._local_devices()]
        return [*launcher, str(self.script), "--stage", stage, "--no-hint", *self.words]

    def _local_devices(self) -> list[str]:
        """DeepSpeed forgets CUDA_VISIBLE_DEVICES when it is given a number, so it is given names then."""
        named = _named_devices()
        if self.accelerators and named and count_accelerators():
            return ["--include", f"localhost:{','.join(named[: self.accelerators])}"]
        if self.accelerators or not count_accelerators():
            return ["--num_accelerators", str(self.accelerators or 1)]
        return []


def run_all(request: Request, launch: Launch, stages: Sequence[Stage]) -> int:
    """Run, resume or skip each of `stages`; returns the exit status of the first that does not finish.

    Raises:
        UserError: a stage is blocked, its batches cannot be divided, or there are not the devices; found out
            before anything starts.
    """
    for plan in plan_stages(request, stages):
        if plan.action == "blocked":
            raise UserError(f"stage {plan.stage}: {plan.why}.\n{plan.remedy}")
        if plan.action != "skip":
            launch.check_devices()
            check_batches(request.config, plan.stage, launch.world())
    for stage in stages:
        status = _run_one(request, launch, stage)
        if status:
            return status
    return 0


def _run_one(request: Request, launch: Launch, stage: Stage) -> int:
    plan = plan_stage(request, stage, locked=request.run.is_locked(stage))
    if plan.action == "skip":
        print(f"stage {stage}: {plan.why}", flush=True)
        return 0
    status = _launch(launch, stage, request.run.manifest(stage))
    manifest = read_manifest(request.run.manifest(stage))
    if status == 0 and (manifest is None or manifest.status != "finished"):
        status = 1  # the launcher exits 0 when it was killed itself
    if status:
        logs = request.run.logs(stage)
        print(
            f"stage {stage} ended with status {status}; its logs are in {logs}", file=sys.stderr, flush=True
        )
    return status


def _launch(launch: Launch, stage: Stage, manifest: Path) -> int:
    """Run one stage to its end; a signal to this process stops all of the stage's processes first."""
    process = subprocess.Popen(launch.command(stage), env=launch.environment(), start_new_session=True)
    with _forward_signals(process.pid, manifest) as received:
        status = process.wait()
        if received:
            _wait_for_group(process.pid)
            return 128 + received[0]
    return 128 - status if status < 0 else status


@contextmanager
def _forward_signals(group: int, manifest: Path) -> Iterator[list[int]]:
    """Pass SIGINT and SIGTERM on to the processes of a stage; yields the list of those received.

    The first goes to rank 0 alone, which ends its training together with the other ranks, however long
    the step in hand takes. The launcher would kill them after 30 seconds, and the `deepspeed` command
    itself would die and leave them behind. Before there is a rank 0, and from the second signal on, all
    processes of the group get it, as SIGTERM.
    """
    received: list[int] = []
    first = 0.0

    def forward(signum: int, _frame: FrameType | None) -> None:
        nonlocal first
        first = first or time.monotonic()
        if received and time.monotonic() - first < SECONDS_TO_REPEAT:
            return  # `timeout` and its like send every signal twice
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
    """The process id of a stage's rank 0, as its manifest has it; None if it is none of the group."""
    found = read_manifest(manifest)
    if found is None or found.process is None or found.process.host != socket.gethostname():
        return None
    with suppress(ProcessLookupError):
        if os.getpgid(found.process.pid) == group:
            return found.process.pid
    return None


def _wait_for_group(group: int) -> None:
    """Wait until no process of the group is left; after a while, kill those that are."""
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


def count_accelerators() -> int:
    """Accelerators that torch can use; 0 on a machine with CPUs alone."""
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def visible_devices() -> list[str]:
    """The accelerators that torch can use, as CUDA_VISIBLE_DEVICES names them."""
    count = count_accelerators()
    return _named_devices()[:count] or [str(number) for number in range(count)]


def guess_accelerators() -> int:
    """NVIDIA devices that this machine shows, without importing torch; 0 where there are none."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return len(_named_devices())
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _named_devices() -> list[str]:
    """What CUDA_VISIBLE_DEVICES names; nothing where it is not set."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return [name.strip() for name in names if name.strip()]


def read_slots(hostfile: Path) -> list[int]:
    """Slots of each machine of a DeepSpeed hostfile.

    Raises:
        UserError: there is no such file, a line is not `NAME slots=N`, or a machine is named twice or none.
    """
    if not hostfile.is_file():
        raise UserError(f"--hostfile: {hostfile} does not exist; launch/hostfile.example shows the form.")
    slots: dict[str, int] = {}
    for number, line in enumerate(_text_of(hostfile).splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or not SLOTS.fullmatch(words[1]):
            raise UserError(
                f"{hostfile}: line {number}: expected `NAME slots=N`, found `{line.strip():.80}`. Correct it."
            )
        if words[0] in slots:
            raise UserError(f"{hostfile}: line {number}: {words[0]:.80} is there already. Add up its slots.")
        slots[words[0]] = int(words[1].removeprefix("slots="))
    if not slots:
        raise UserError(f"{hostfile}: names no machine; launch/hostfile.example shows the form.")
    return list(slots.values())


def _text_of(hostfile: Path) -> str:
    try:
        return hostfile.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{hostfile}: cannot be read: {error.strerror}. Give another --hostfile.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{hostfile}: not UTF-8 at byte {error.start}; it must be plain text.") from error


def free_port() -> int:
    """A port of this machine that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
