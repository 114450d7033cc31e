"""Runs several commands at a time on one machine, each on its share of the GPUs or cores."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Self

from configs.errors import UserError
from pipeline.processes.parent_watch import mark_of_this_process

LOG = "run.log"


class WorkerPool:
    """Runs commands at a time, each on its share of the machine. No command outlives the `with`.

    Attributes:
        jobs: commands at a time. If there are several, each writes its output to LOG in its folder.
        share: devices of each command; 0 on a machine with only CPUs.
        free: slots without a command.
        busy: folder and process of each other slot.
    """

    def __init__(self, jobs: int = 1, devices: Sequence[str] = (), ranks: int = 1) -> None:
        """`devices` are names for CUDA_VISIBLE_DEVICES. The `ranks` of a command share its CPU cores."""
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
        """Start a command in the first free slot.

        Raises:
            UserError: its LOG cannot be written.
        """
        slot = self.free.pop(0)
        try:
            with (folder / LOG).open("ab") if self.jobs > 1 else nullcontext() as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment(slot),
                    start_new_session=True,
                )
        except OSError as error:
            raise not_writable(folder, error) from error
        self.busy[slot] = folder, process

    def poll(self) -> list[tuple[Path, int]]:
        """Folder and exit status of each command that has ended since the last call."""
        ended = []
        for slot, (folder, process) in list(self.busy.items()):
            code = process.poll()
            if code is not None:
                del self.busy[slot]
                self.free.append(slot)
                ended.append((folder, 128 - code if code < 0 else code))
        return ended

    def end_message(self, folder: Path, code: int) -> str:
        """The message about a command that has ended."""
        where = f"; its output is in {folder / LOG}" if self.jobs > 1 else ""
        return f"{folder.name} ended with status {code}{where}"

    def interrupt(self) -> None:
        """Send SIGTERM to the running commands: the first ends them after a step, a second at once."""
        for _, process in self.busy.values():
            process.terminate()  # at a SIGINT, Python would print a traceback while it is starting

    def _environment(self, slot: int) -> dict[str, str]:
        environment = os.environ | mark_of_this_process()
        if self.jobs > 1 and self.share:
            begin = slot * self.share % len(self._devices)
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self._devices[begin : begin + self.share])
        elif self.jobs > 1:
            environment.setdefault("OMP_NUM_THREADS", str(self._threads))
        return environment


def not_writable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path}: cannot be written: {error.strerror}. Make room there, or give another --run-dir."
    )
