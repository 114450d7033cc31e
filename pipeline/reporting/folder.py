"""The folder that a report, or what a command found, is written into."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from configs.errors import UserError
from pipeline.state.run_directory import check_plain

REPORT_AGAIN = (
    "Results are not affected. Fix this, then run `tristage report --run-dir DIR` (a sweep: the same "
    "`tristage sweep`)."
)
ELSEWHERE = "Fix this, or give another --out."


@contextmanager
def report_folder(folder: Path, remedy: str = REPORT_AGAIN) -> Iterator[Path]:
    """Create `folder`. Within, whatever the disk refuses is an error for the user.

    Raises:
        UserError: the folder holds links, or cannot be written.
    """
    check_plain(folder)
    with _told(folder, remedy):
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def check_writable(folder: Path, remedy: str = ELSEWHERE) -> None:
    """Check, before the work begins, that `folder` can be written or created. Nothing is left behind.

    Raises:
        UserError: the folder holds links, or cannot be written.
    """
    check_plain(folder)
    check_can_be_written(folder, remedy)


def check_can_be_written(folder: Path, remedy: str = ELSEWHERE) -> None:
    """As `check_writable`, for a folder of the user's own, which may hold links."""
    with _told(folder, remedy):
        whole = folder.absolute()
        there = next(path for path in (whole, *whole.parents) if os.path.lexists(path))
        with TemporaryFile(dir=there):
            pass


@contextmanager
def _told(folder: Path, remedy: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "a file is in its place" if in_the_way else error.strerror or error
        raise UserError(f"{folder}: cannot be written: {reason}. {remedy}") from error
