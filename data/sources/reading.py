"""Read the raw rows of a file, a folder, a pattern or a hub dataset, with the place of each row."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetsError

from configs.errors import UserError
from configs.schema import Source, ending_of
from data.sources.bad_rows import BadRow
from data.sources.folders import (
    check_all_read,
    check_endings,
    check_number,
    check_once,
    check_one_type,
    check_shards,
    data_files,
    files_of_pattern,
)
from data.sources.json_rows import Rows, numbered, read_json
from data.sources.opening import DamagedFile, existing
from data.sources.tables import read_csv, read_parquet, read_tsv
from data.storage.source_digest import is_pattern

READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": read_json,
    ".json": read_json,
    ".parquet": read_parquet,
    ".csv": read_csv,
    ".tsv": read_tsv,
}
TABLES = ("arrow", "csv", "json", "parquet")  # builders of `datasets` whose rows have keys of their own


class NotLoaded(UserError):
    """`datasets` could not load a data set of the hub."""


def describe(source: Source) -> str:
    """The name of `source` in messages: a path, or a hub dataset with configuration and split."""
    if ending_of(source.path) or is_pattern(source.path):
        return source.path
    parts = (source.name, source.data_dir, source.split)
    return f"{source.path} ({', '.join(part for part in parts if part)})"


def is_local(source: Source) -> bool:
    """Whether the source is on this machine, and not a data set of the hub."""
    return ending_of(source.path) is not None or os.path.exists(source.path) or is_pattern(source.path)


def where(source: Source, place: str) -> str:
    """The name of a row in messages. `place` is what `read` yields, or follows the name of the source."""
    return place if _has_files(source) and ", " in place else f"{describe(source)}, {place}"


def read(source: Source) -> Rows:
    """Yield `(place, row)` of each row. `place` is "line 3" or "row 3" (from 1).

    In a folder or a pattern, the path stands before it (see `where`). A row that is not an object, or whose
    number of cells is not that of the columns, is yielded as a BadRow.

    Raises:
        UserError: a file or the dataset cannot be read.
    """
    if is_pattern(source.path):
        return _files(files_of_pattern(source.path))
    if ending_of(source.path):
        return read_file(existing(source.path))
    if os.path.isdir(source.path):
        return _folder(source)
    return numbered(_hub(source))


def read_file(file: Path) -> Rows:
    """Yield the rows of one file, as `read` does."""
    ending = ending_of(file.name)
    assert ending is not None
    place = ""
    try:
        for place, row in READERS[f".{ending.split('.')[1]}"](file):
            yield place, row
    except DamagedFile as fault:
        after = f"damaged after {place}: " if place else ""
        raise UserError(f"{file}: {after}{fault}.") from fault


def _has_files(source: Source) -> bool:
    return is_pattern(source.path) or (ending_of(source.path) is None and os.path.isdir(source.path))


def _files(files: list[Path]) -> Rows:
    for file in files:
        for place, row in read_file(existing(file)):
            yield f"{file}, {place}", row


def _hub(source: Source) -> Iterator[Any]:
    local = os.path.expanduser(source.path)
    if os.path.isfile(local) or (os.path.isabs(local) and not os.path.exists(local)):
        raise UserError(
            f"{source.path}: not a readable file. Use the path of a file that ends in .jsonl, .json, .csv, "
            ".tsv or .parquet, or the id of a hub dataset such as Anthropic/hh-rlhf."
        )
    try:
        yield from _rows_of(_loaded(source))  # a stream may break off at any row
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = str(error).partition("\n")[0]
        raise NotLoaded(
            f"hub dataset {describe(source)} could not be loaded: {reason}. Check its id, `name`, "
            "`data_dir`, `split` and `revision`, and the network; a local file's path must end in .jsonl, "
            ".json, .csv, .tsv or .parquet."
        ) from error


def _loaded(source: Source) -> datasets.Dataset | datasets.IterableDataset:
    dataset = datasets.load_dataset(
        source.path,
        source.name,
        data_dir=source.data_dir,
        split=source.split,
        revision=source.revision,
        streaming=source.streaming,
    )
    if not isinstance(dataset, datasets.Dataset | datasets.IterableDataset):
        raise UserError(f"hub dataset {describe(source)}: `split` must name one split, such as train.")
    return dataset


def _rows_of(dataset: datasets.Dataset | datasets.IterableDataset) -> Iterator[Any]:
    """The rows as they are stored. Images and sound are not decoded: their columns are refused by name."""
    for batch in dataset.with_format("arrow").iter(batch_size=1000):
        yield from batch.to_pylist()


def _folder(source: Source) -> Rows:
    """The rows of a split of a local folder: file by file, or as the folder's own description says."""
    folder = Path(source.path)
    if source.revision is not None:
        raise UserError(f"{folder}: a folder has no revision. Leave `revision` out of this source.")
    if source.data_dir is not None:
        raise UserError(f"{folder}: `data_dir` is of hub datasets. Write it into `path`.")
    if source.streaming:
        raise UserError(
            f"{folder}: `streaming` is of hub datasets. Leave it out: the folder is on this disk."
        )
    check_number(folder)
    try:
        files = _files_of_split(source, folder)
        if files is not None:
            return _files(files)
        return ((where(source, place), row) for place, row in numbered(_rows_of(_loaded(source))))
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise _fault_of_folder(source, error) from error


def _files_of_split(source: Source, folder: Path) -> list[Path] | None:
    """The files of a split, in order. None if only `datasets` knows how to read them.

    It does if the folder describes configurations, if `split` is an expression such as train[:10%], or if a
    file is a table of another type.
    """
    builder = datasets.load_dataset_builder(source.path, source.name)
    splits = builder.config.data_files or {}
    if builder.name not in TABLES and not _describes_itself(folder):
        raise UserError(
            f"{folder}: its files are no tables ({builder.name}). Use files that end in .jsonl, .json, .csv, "
            ".tsv or .parquet, or describe in a dataset card how they are read."
        )
    if source.name is None and len(builder.builder_configs) == 1:  # else other configurations have files, too
        check_all_read(folder, {Path(file).resolve() for files in splits.values() for file in files})
    chosen = [source.split] if source.split in splits else splits  # an expression may be of all
    files = sorted({_inside(folder, file) for split in chosen for file in splits[split]})
    _check_files(folder, files)
    if source.name is not None or _describes_itself(folder) or source.split not in splits:
        return None
    if not all(ending_of(file.name) for file in files):
        return None
    check_one_type(folder, files)
    check_once(folder, files)
    return files


def _check_files(folder: Path, files: list[Path]) -> None:
    """Raise UserError for a copy that would be read, or a missing shard. A card may name its files."""
    card = folder / "README.md"
    described = _describes_itself(folder)
    text = card.read_text(errors="replace") if described and card.is_file() else ""
    if not described:
        check_endings(folder, files)
    check_shards(folder, [file for file in files if file.name not in text], lambda _: True)


def _describes_itself(folder: Path) -> bool:
    """Whether a dataset card says which files are read, and how."""
    card = folder / "README.md"
    return (folder / ".huggingface.yaml").exists() or (
        card.is_file() and card.read_bytes().startswith(b"---")
    )


def _inside(folder: Path, file: str) -> Path:
    """The path of a file below `folder`, as the source names the folder."""
    resolved = folder.resolve()
    return folder / Path(file).relative_to(resolved) if Path(file).is_relative_to(resolved) else Path(file)


def _fault_of_folder(source: Source, error: Exception) -> UserError:
    """What is wrong with a local folder: a row of one of its files, or what `datasets` says."""
    for file in data_files(Path(source.path)):
        if ending_of(file.name):
            try:
                rows = read_file(existing(file))
                if bad := next(((place, row) for place, row in rows if isinstance(row, BadRow)), None):
                    return UserError(f"{file}, {bad[0]}: {bad[1]}. Correct or remove the row.")
            except UserError as fault:
                return fault
    reason = str(error.__cause__ or error).strip().partition("\n")[0]
    return UserError(
        f"{source.path}: this folder could not be read as a data set: {reason:.300}. All of its files need "
        "the same columns and types; `split` and `name` must be among those of the folder."
    )
