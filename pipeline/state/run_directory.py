"""A run directory: its folders, and the lock that keeps a stage to one job at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from configs.errors import UserError
from configs.schema import Stage
from data.storage.files import remove_partial_files, sync, write_text

PLAIN_REMEDY = "Put a file or a folder in its place. Only the run directory itself may be a link."

WANDB_LINKS = ("latest-run", "debug.log", "debug-internal.log")  # W&B replaces them, and never follows them


def check_plain(folder: Path) -> None:
    """Raise UserError if writing into `folder` could lead elsewhere; see `not_plain`."""
    if fault := not_plain(folder):
        raise UserError(f"{fault}. {PLAIN_REMEDY}")


def not_plain(folder: Path) -> str | None:
    """What is wrong with the first entry of `folder`, or with itself, that is neither file nor folder.

    People share run directories. A link in one could name any file of the account that continues the run.
    """
    if folder.is_symlink():
        return f"{folder} is a link"
    for root, folders, files in os.walk(folder):
        in_wandb = Path(root) == folder / "wandb"
        for path in (Path(root) / name for name in (*folders, *files)):
            if path.is_symlink() and not (in_wandb and path.name in WANDB_LINKS):
                return f"{path} is a link"
            if path.exists() and not path.is_file() and not path.is_dir():
                return f"{path} is neither a file nor a folder"
        if in_wandb:
            folders.clear()  # W&B writes each attempt into a new folder
    return None


@dataclass(frozen=True)
class RunDirectory:
    """`RUN/config.yaml`, `RUN/<stage>/...` and `RUN/report/`; nothing is created before it is needed."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    def check(self, option: str = "--run-dir") -> None:
        """Raise UserError unless a run has begun here; `option` names another directory."""
        if not self.config_file.is_file():
            raise UserError(
                f"{self.path}: not a run directory, it has no config.yaml. Run an experiment first, or give "
                f"another {option}."
            )

    def stage(self, stage: Stage) -> Path:
        return self.path / stage

    def manifest(self, stage: Stage) -> Path:
        return self.stage(stage) / "manifest.json"

    def adapter(self, stage: Stage) -> Path:
        return self.stage(stage) / "adapter"

    def output(self, stage: Stage) -> Path:
        """The folder for later stages: the adapter, or the demonstrations that `best` picked."""
        return self.stage(stage) / "demonstrations" if stage == "best" else self.adapter(stage)

    def logs(self, stage: Stage) -> Path:
        return self.stage(stage) / "logs"

    def aside(self, stage: Stage, kind: str = "old") -> Path:
        """The next free name for a stage's folder: `RUN/sft.old-1`, `RUN/sft.old-2`, ..."""
        number = 1
        while os.path.lexists(candidate := self.path / f"{stage}.{kind}-{number}"):
            number += 1
        return candidate

    def read_config(self) -> str | None:
        """The text of `config.yaml`; None before the first stage."""
        return self.config_file.read_text(encoding="utf-8") if self.config_file.is_file() else None

    def write_config(self, text: str) -> None:
        """Write `config.yaml`. Stages that run at the same time take turns, and keep each other's files."""
        with FileLock(self.path / ".config.lock", is_singleton=False):
            remove_partial_files(self.path, f".{self.config_file.name}.*")
            write_text(self.config_file, text)

    def set_aside(self, stage: Stage) -> Path:
        """Rename the stage's folder, which keeps its content and lets a new one begin."""
        target = self.aside(stage)
        self.stage(stage).rename(target)
        sync(self.path)
        return target

    def restore(self, stage: Stage, aside: Path) -> Path:
        """Undo `set_aside`. The folder of the failed attempt becomes `RUN/sft.failed-1`, and is returned."""
        failed = self.aside(stage, "failed")
        self.stage(stage).rename(failed)
        aside.rename(self.stage(stage))
        sync(self.path)
        return failed

    @contextmanager
    def lock(self, stage: Stage, owner: str = "another process") -> Iterator[None]:
        """Hold the stage for this process.

        The lock file lies beside the stage's folder, because the folder may be set aside while the lock is
        held. The operating system releases the lock when the process dies, however it dies.

        Raises:
            UserError: another process holds it. `owner` names that process if it is known.
        """
        lock = self._file_lock(stage)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:  # an OSError, too
            raise UserError(
                f"{self.stage(stage)}: stage {stage} is being run by {owner}. "
                "Wait until it ends, stop it, or choose another --run-dir."
            ) from None
        except OSError as error:
            raise self._unusable(error) from error
        try:
            yield
        finally:
            lock.release()

    def is_locked(self, stage: Stage) -> bool:
        """True while some process runs the stage. Creates nothing."""
        if not self._lock_path(stage).exists():
            return False
        lock = self._file_lock(stage)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        except OSError as error:
            raise self._unusable(error) from error
        lock.release()
        return False

    def _unusable(self, error: OSError) -> UserError:
        reason = "a file is in its place" if isinstance(error, FileExistsError) else error.strerror
        return UserError(f"{self.path}: cannot be a run directory: {reason}. Choose another --run-dir.")

    def _lock_path(self, stage: Stage) -> Path:
        return self.path / f".{stage}.lock"

    def _file_lock(self, stage: Stage) -> FileLock:
        return FileLock(self._lock_path(stage), is_singleton=False)
