"""Local folders of data: which of their files `datasets` reads, and which one it stumbles over."""

from __future__ import annotations

import os
from collections.abc import Iterator, Set
from itertools import islice
from pathlib import Path

from configs.errors import UserError
from configs.schema import DATA_FILES

OTHER_DATA = (".csv", ".tsv", ".ndjson", ".arrow", ".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip", ".7z")
ABOUT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
MOST_FILES = 10_000  # more can only be a wrong folder, such as /


def check_number(folder: Path) -> None:
    """Raise UserError if a folder is far too large to be one of data. It looks at no file."""
    if len(list(islice(_files(folder), MOST_FILES + 1))) > MOST_FILES:
        raise UserError(
            f"{folder}: this folder holds over {MOST_FILES:,} files. Name the folder that holds the "
            "data alone."
        )


def check_all_read(folder: Path, read: Set[Path]) -> None:
    """Raise UserError if a file that looks like data is in no split.

    Args:
        read: the files of all splits, resolved.
    """
    unread = [file for file in data_files(folder) if file.resolve() not in read]
    if unread:
        more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
        raise UserError(
            f"{folder}: {unread[0].relative_to(folder)}{more} would not be read. All files of a folder "
            "need one type, and if one name says a split, such as train.jsonl, each must say one. Rename or "
            "convert the file, or move it away."
        )


def data_files(folder: Path) -> list[Path]:
    """The files that look like data, in order."""
    endings = (*DATA_FILES, *OTHER_DATA)
    return sorted(
        file for file in _files(folder) if file.name.lower().endswith(endings) and file.name not in ABOUT_DATA
    )


def _files(folder: Path) -> Iterator[Path]:
    """All files but hidden ones and those in hidden folders. No link to a folder is followed."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))
