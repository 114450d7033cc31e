"""Several commands at a time on one machine, each on its share of the GPUs, or of the cores."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Self

from configs.errors import UserError

LOG = "run.log"


class WorkerPool:
    """Commands that run at a time, each on its share of the machine; none outlives the `with`.

    Attributes:
        jobs: how many at a time. Of more than one, each writes what it says to LOG in its folder.
        share: how many devices each has; 0 on a machine with CPUs alone.
        free: places where no command runs.
        busy: those where one does.
    """

    def __init__(self, jobs: int = 1, devices: Sequence[str] = (), ranks: int = 1) -> None:
        """`devices`: names for CUDA_VISIBLE_DEVICES. `ranks`: of each command, which share its CPU cores."""
        self.jobs, self.share = jobs, max(1, len(devices) // jobs) if devices else 0
        self.free = list(range(jobs))
        self.busy: dict[int, tuple[Path, subprocess.Popen[bytes]]] = {}
        self._devices, self._threads = devices, max(1, (os.cpu_count() or 1) // (jobs * ranks))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.interrupt()
        for _folder, process in self.busy.values():
            process.wait()

    def start(self, folder: Path, command: Sequence[str]) -> None:
        """Start a command in the first place that is free.

        Raises:
            UserError: its LOG cannot be written.
        """
        place = self.free.pop(0)
        try:
            with (folder / LOG).open("ab") if self.jobs > 1 else nullcontext() as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment(place),
                    start_new_session=True,
                )
        except OSError as error:
            raise not_writable(folder, error) from error
        self.busy[place] = folder, process

    def ended(self) -> list[tuple[Path, int]]:
        """The folders of commands that have ended since the last look, with their exit status."""
        found = []
        for place, (folder, process) in list(self.busy.items()):
            code = process.poll()
            if code is not None:
                del self.busy[place]
                self.free.append(place)
                found.append((folder, 128 - code if code < 0 else code))
        return found

    def last_words(self, folder: Path, code: int) -> str:
        """What is to be said of a command that has ended."""
        where = f"; its output is in {folder / LOG}" if self.jobs > 1 else ""
        return f"{folder.name} ended with status {code}{where}"

    def interrupt(self) -> None:
        """Have every command that still runs end after the step in hand; a second time, at once."""
        for _, process in self.busy.values():
            process.terminate()  # not SIGINT, at which Python shows where it was when it is only starting

    def _environment(self, place: int) -> dict[str, str]:
        environment = dict(os.environ)
        if self.jobs > 1 and self.share:
            begin = place * self.share % len(self._devices)
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self._devices[begin : begin + self.share])
        elif self.jobs > 1:
            environment.setdefault("OMP_NUM_THREADS", str(self._threads))
        return environment


def not_writable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path}: cannot be written: {error.strerror}. Make room there, or give another --run-dir."
    )
