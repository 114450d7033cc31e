"""One launch of a stage under `deepspeed`, and SIGKILL to some of its processes."""

from __future__ import annotations

import contextlib
import random
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from configs.schema import Stage
from tests.support.runs import environment, launcher, words

STAGE = Path(__file__).with_name("stage.py")
MARK = "CHAOS_MARK"  # in the environment of all processes that an attempt starts, whoever their parent is
SOCKETS = ("wandb-", "wandb_symon-")  # short paths, as sockets need, and nobody is left to remove them
SECONDS_TO_RUN, SECONDS_TO_END = 600.0, 120.0

Target = Literal["launcher", "rank", "all"]


@dataclass(frozen=True)
class Kill:
    """SIGKILL to `target`, `seconds` after the launch or, where there is one, at a moment of rank 0."""

    target: Target
    seconds: float = 0.0
    moment: str = ""

    @property
    def kind(self) -> str:
        """What rank 0 was at, in a word."""
        for word in ("checkpoints", "adapter", "manifest", ".jsonl", "config.yaml"):
            if word in self.moment:
                return {"checkpoints": "checkpoint", ".jsonl": "journal"}.get(word, word)
        return "another file" if self.moment else "by the clock"


class Attempt:
    """A stage that is running; its output is in `scratch`."""

    def __init__(
        self, stage: Stage, run: Path, ranks: int, scratch: Path, options: list[str], hold: str = ""
    ) -> None:
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
                [*launcher(ranks), str(STAGE), *words(stage, run, *options)],
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

    def strike(self, kill: Kill, chance: random.Random) -> bool:
        """Deal out `kill` when its moment comes; False where the attempt ends before."""
        due = self.held.exists if kill.moment else lambda: time.monotonic() - self.begin >= kill.seconds
        if not self._until(due) or not self._until(lambda: bool(self._victims(kill.target))):
            return False
        victims = self._victims(kill.target)
        if kill.target != "all":
            # However many there are just now, what is drawn later stays the same.
            victims = [victims[int(chance.random() * len(victims))]]
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGKILL)
        self.held.unlink(missing_ok=True)
        return True

    def temporary_files(self) -> list[str]:
        """What it left outside of its run, the sockets of W&B's own process aside; removed now."""
        names = [path.name for path in self.temporary.iterdir()]
        found = [name for name in names if not name.startswith(SOCKETS)]
        shutil.rmtree(self.temporary)
        return found

    def orphans(self) -> list[str]:
        """Processes that are left when there was time to end; they are killed now."""
        deadline = time.monotonic() + SECONDS_TO_END
        while (left := self._processes()) and time.monotonic() < deadline:
            self.process.poll()
            time.sleep(0.2)
        found = [" ".join(words_of(process)) for process in left]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return found

    def _until(self, due: Callable[[], bool]) -> bool:
        """Wait until `due`; False where the launcher ends before."""
        while not due():
            if self.process.poll() is not None:
                return False
            time.sleep(0.02)
        return self.process.poll() is None

    def _victims(self, target: Target) -> list[psutil.Process]:
        processes = self._processes()
        if target == "all":
            return processes
        is_rank = {
            process: any("--local_rank=" in word for word in words_of(process)) for process in processes
        }
        if target == "rank":
            return [process for process in processes if is_rank[process]]
        # The command itself, and the process of this machine that it starts.
        names = ("bin/deepspeed", "deepspeed.launcher.launch")
        return [p for p in processes if not is_rank[p] and any(n in " ".join(words_of(p)) for n in names)]

    def _processes(self) -> list[psutil.Process]:
        """The attempt's processes that are alive, the launcher first."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return sorted(found, key=lambda process: process.pid)


def words_of(process: psutil.Process) -> list[str]:
    """The command line of a process; none where it has gone."""
    try:
        words: list[str] = process.cmdline()
    except psutil.NoSuchProcess:
        words = []
    return words
