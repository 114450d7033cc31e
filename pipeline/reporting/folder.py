"""The folder that a report is written into."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.errors import UserError
from pipeline.state.run_directory import check_plain


@contextmanager
def report_folder(folder: Path) -> Iterator[Path]:
    """Create `folder`. Within, whatever the disk refuses is an error for the user.

    Raises:
        UserError: the folder holds links, or cannot be written.
    """
    check_plain(folder)
    try:
        folder.mkdir(exist_ok=True)
        yield folder
    except OSError as error:
        reason = "a file is in its place" if isinstance(error, FileExistsError) else error.strerror or error
        raise UserError(
            f"{folder}: the report cannot be written: {reason}. Results are not affected. Fix this, then run "
            f"`tristage report --run-dir DIR` (a sweep: the same `tristage sweep`)."
        ) from error
