"""One launch of a stage or of `tristage`, and SIGKILL to some of its processes."""

from __future__ import annotations

import contextlib
import random
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from tests.chaos.stage import WANDB_END
from tests.support.runs import environment

STAGE = Path(__file__).with_name("stage.py")
MARK = "CHAOS_MARK"  # in the environment of all processes of an attempt, whatever their parent is
# What libraries leave in the temporary folder: sockets, if they are killed, and torch's cache of each user.
OF_LIBRARIES = ("wandb-", "wandb_symon-", "torchinductor_")
SECONDS_TO_RUN, SECONDS_TO_END = 600.0, 120.0

Target = Literal["launcher", "rank", "tristage", "all"]


@dataclass(frozen=True)
class Kill:
    """SIGKILL to `target`, `seconds` after the launch or, if `moment` is set, at that moment of rank 0."""

    target: Target
    seconds: float = 0.0
    moment: str = ""

    @property
    def kind(self) -> str:
        """What rank 0 was writing, in one word."""
        for word in ("checkpoints", "adapter", "manifest", ".jsonl", "config.yaml"):
            if word in self.moment:
                return {"checkpoints": "checkpoint", ".jsonl": "journal"}.get(word, word)
        if self.moment.startswith("in "):
            return "phase"
        if self.moment == WANDB_END:
            return self.moment
        return "another file" if self.moment else "by the clock"


class Attempt:
    """A running command, whose output is in `scratch`.

    Its program is `stage.py`, where `run`, `stage` and `hold` are explained.
    """

    def __init__(self, command: Sequence[str], run: Path, stage: str, scratch: Path, hold: str = "") -> None:
        scratch.mkdir(parents=True)
        self.mark, self.held, self.begin = secrets.token_hex(8), scratch / "held", time.monotonic()
        self.output, self.trace = scratch / "output", scratch / "trace"
        marks = {MARK: self.mark, "CHAOS_RUN": str(run), "CHAOS_STAGE": stage, "CHAOS_HOLD": hold}
        self.temporary = Path(tempfile.mkdtemp(prefix="chaos-"))  # a short path, for sockets
        files = {
            "CHAOS_TRACE": str(self.trace),
            "CHAOS_HELD": str(self.held),
            "TMPDIR": str(self.temporary),
        }
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                command,
                env=environment() | marks | files,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def end(self) -> int:
        """Wait for the launcher; its exit status."""
        status = self.process.wait(SECONDS_TO_RUN)
        self.seconds = time.monotonic() - self.begin
        return status

    def strike(self, kill: Kill, chance: random.Random, begun: Path | None = None) -> bool:
        """Send `kill` at its moment, or once `begun` has content. Returns False if it ends before."""

        def due() -> bool:
            if begun:
                return begun.exists() and begun.stat().st_size > 0
            return self.held.exists() if kill.moment else time.monotonic() - self.begin >= kill.seconds

        if not self._until(due) or not self._until(lambda: bool(self._victims(kill.target))):
            return False
        victims = self._victims(kill.target)
        if kill.target != "all":
            # One draw, whatever the number of processes, so that later draws stay the same.
            victims = [victims[int(chance.random() * len(victims))]]
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGKILL)
        self.held.unlink(missing_ok=True)
        return True

    def temporary_files(self) -> list[str]:
        """Remove the files that the attempt left outside of its run; returns all but those of libraries."""
        names = [path.name for path in self.temporary.iterdir()]
        left_over = [name for name in names if not name.startswith(OF_LIBRARIES)]
        shutil.rmtree(self.temporary)
        return left_over

    def orphans(self) -> list[str]:
        """Kill the processes that have not ended in time; returns their command lines."""
        deadline = time.monotonic() + SECONDS_TO_END
        while (alive := self._processes()) and time.monotonic() < deadline:
            self.process.poll()
            time.sleep(0.2)
        command_lines = [" ".join(command_line(process)) for process in alive]
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return command_lines

    def _until(self, due: Callable[[], bool]) -> bool:
        """Wait until `due`. Returns False if the launcher ends before."""
        while not due():
            if self.process.poll() is not None:
                return False
            time.sleep(0.02)
        return self.process.poll() is None

    def _victims(self, target: Target) -> list[psutil.Process]:
        processes = self._processes()
        if target == "all":
            return processes
        if target == "tristage":
            return [process for process in processes if command_line(process)[1:2] == [str(STAGE)]]
        is_rank = {
            process: any("--local_rank=" in word for word in command_line(process)) for process in processes
        }
        if target == "rank":
            return [process for process in processes if is_rank[process]]
        # The command `deepspeed`, and the process that it starts on this machine.
        names = ("bin/deepspeed", "deepspeed.launcher.launch")
        return [
            p
            for p in processes
            if not is_rank[p] and any(name in " ".join(command_line(p)) for name in names)
        ]

    def _processes(self) -> list[psutil.Process]:
        """The live processes of the attempt, the launcher first."""
        alive = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process)
        return sorted(alive, key=lambda process: process.pid)


def command_line(process: psutil.Process) -> list[str]:
    """The command line of a process, empty if the process has ended."""
    try:
        line: list[str] = process.cmdline()
    except psutil.NoSuchProcess:
        line = []
    return line
