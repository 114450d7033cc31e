"""Local folders and patterns of data: which files they name, in order, and which would be left out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence, Set
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path

from configs.errors import UserError
from configs.schema import DATA_FILES, ending_of
from data.storage.source_digest import MOST_FILES, is_pattern, matches

OTHER_DATA = (".ndjson", ".arrow", ".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip", ".7z")
SHARD = re.compile(r"(.*?)(\d+)([-_]of[-_])(\d+)(.*)", re.IGNORECASE)  # as in train-00001-of-00003.jsonl
ABOUT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


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
        raise _not_read(folder, unread)


def check_one_type(folder: Path, files: Sequence[Path]) -> None:
    """Raise UserError if files of a folder differ in type or compression: one may be a copy of another."""
    first = _type(files[0])
    if others := [file for file in files if _type(file) != first]:
        raise _not_read(folder, others)


def check_endings(folder: Path, files: Sequence[Path]) -> None:
    """Raise UserError for a copy such as a.jsonl.bak, which `datasets` would read beside a.jsonl."""
    if other := next((file for file in files if not _has_ending(file)), None):
        raise UserError(
            f"{folder}: {other.relative_to(folder)} would be read, too, though no data file ends so. Move it "
            "away if it is a copy, or rename it if its rows are meant."
        )


def check_shards(source: Path | str, files: Sequence[Path], names: Callable[[str], bool]) -> None:
    """Raise UserError if files such as train-00001-of-00003.jsonl are fewer than their names say.

    Args:
        names: whether the source means a file of this name. A pattern may mean one shard on purpose.
    """
    shards: dict[tuple[Path, str, str, str, str], dict[int, int]] = {}
    for file in files:
        if match := SHARD.fullmatch(file.name):
            before, number, of, total, after = match.groups()
            digits = shards.setdefault((file.parent, before, of, total, after), {})
            digits[int(number)] = len(number)
    for (_, before, of, total, after), digits in shards.items():
        count = int(total)
        if count > MOST_FILES:  # no number of files
            continue
        first = int(0 not in digits and count in digits)
        width = min(digits.values())
        absent = [f"{n:0{width}}" for n in range(first, first + count) if n not in digits]
        if missing := [number for number in absent if names(f"{before}{number}{of}{total}{after}")]:
            more = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
            raise UserError(
                f"{source}: shard {missing[0]} of {total}{more} missing "
                f"({before}{missing[0]}{of}{total}{after}). Copy what is missing, or "
                "give a pattern that names only the shards you mean."
            )


def check_once(source: Path | str, files: Sequence[Path]) -> None:
    """Raise UserError if a link makes one file two of them: its rows would count twice."""
    seen: dict[str, Path] = {}
    for file in files:
        first = seen.setdefault(os.path.realpath(file), file)
        if first is not file:
            raise UserError(
                f"{source}: {file.name} and {first.name} are one file, whose rows would count twice. Remove "
                "the link, or narrow the pattern."
            )


def files_of_pattern(pattern: str) -> list[Path]:
    """The files that a pattern names, in order.

    Raises:
        UserError: there is none, or something else than data files of one type.
    """
    found = matches(pattern)
    if not found:
        raise UserError(f"{pattern}: no file has such a name. Correct the pattern under `data`.")
    if len(found) > MOST_FILES:
        raise UserError(f"{pattern}: it names over {MOST_FILES:,} files. Narrow the pattern.")
    for file in found:
        if ending_of(file.name) is None or file.is_dir():
            what = "a folder" if file.is_dir() else "no data file"
            raise UserError(
                f"{pattern}: it also names {file}, which is {what}. Narrow the pattern, as in data/*.jsonl."
            )
    first = _type(found[0])
    if other := next((file for file in found if _type(file) != first), None):
        raise UserError(
            f"{pattern}: it names {found[0]} and {other}, which differ in type. Narrow the pattern."
        )
    check_once(pattern, found)
    last = os.path.basename(pattern)
    check_shards(pattern, found, lambda name: fnmatchcase(name, last))
    return found


def size_of(path: str) -> int:
    """Bytes of the file, of the files of the folder, or of those of the pattern at `path`."""
    place = Path(path)
    files = matches(path) if is_pattern(path) else place.rglob("*") if os.path.isdir(path) else [place]
    return sum(file.stat().st_size for file in files if os.path.isfile(file))


def data_files(folder: Path) -> list[Path]:
    """The files that look like data, in order."""
    return sorted(file for file in _files(folder) if _has_ending(file) and file.name not in ABOUT_DATA)


def _has_ending(file: Path) -> bool:
    return file.name.lower().endswith((*DATA_FILES, *OTHER_DATA))


def _type(file: Path) -> tuple[str, str]:
    """What reads a file, and how it is compressed. JSON and JSONL have one reader."""
    ending = ending_of(file.name) or ""
    kind, _, compression = ending.removeprefix(".").partition(".")
    return kind.replace("jsonl", "json"), compression


def _not_read(folder: Path, files: Sequence[Path]) -> UserError:
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return UserError(
        f"{folder}: {files[0].relative_to(folder)}{more} would not be read. All files of a folder "
        "need one type, and if one name says a split, such as train.jsonl, each must say one. Rename or "
        "convert the file, or move it away."
    )


def _files(folder: Path) -> Iterator[Path]:
    """All files but hidden ones and those in hidden folders. No link to a folder is followed."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))
