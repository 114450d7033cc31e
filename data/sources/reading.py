"""Read the raw rows of a JSONL, JSON or Parquet file or of a hub dataset, with the place of each row."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetsError

from configs.errors import UserError
from configs.schema import DATA_FILES, Source
from data.sources.folders import check_all_read, check_number, data_files


class BadRow(ValueError):
    """A row that cannot be read. The message gives the reason."""


class UnusableRow(BadRow):
    """A readable row without anything to learn, such as one with an empty answer. Few may be."""


class LeftOut(BadRow):
    """A row that says itself that there is nothing to learn, such as a bad answer. Any number may be."""


def describe(source: Source) -> str:
    """The name of `source` in messages: the path of a file, or a hub dataset with configuration and split."""
    if source.path.endswith(DATA_FILES):
        return source.path
    return f"{source.path} ({', '.join(part for part in (source.name, source.split) if part)})"


def is_local(source: Source) -> bool:
    """Whether the source is a file or folder of this machine, and not a data set of the hub."""
    return source.path.endswith(DATA_FILES) or os.path.exists(source.path)


def read(source: Source) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    """Yield `(place, row)` of each row. `place` is "line 3" or "row 3" (from 1).

    A row that is not a JSON object is yielded as a BadRow.

    Raises:
        UserError: the file or dataset cannot be read.
    """
    if source.path.endswith(".parquet"):
        return _numbered(_parquet(_existing(source.path)))
    if source.path.endswith((".jsonl", ".json")):
        return _json(_existing(source.path))
    return _numbered(_hub(source))


def _existing(path: str) -> Path:
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{path}: there is no such file. Correct the path under `data` in the configuration.")
    if file.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty. Put rows into it, or point `data` at another file.")
    if not os.access(file, os.R_OK):
        raise UserError(f"{path}: permission to read the file is denied. Change its permissions, or copy it.")
    return file


def _json(file: Path) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    """Read an array of objects if the first character is `[`, else one object per line."""
    with file.open("rb") as stream:
        start = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    return _json_array(file) if start.startswith(b"[") else _json_lines(file)


def _json_array(file: Path) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    try:
        rows, repeated = _loads(file.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 at byte {error.start}. Save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{file}: invalid JSON at {where}: {error.msg}. Correct it there.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{file}: {_parser_limit(error)}. Correct it, or write one object per line."
        ) from None
    return _numbered([_repeated_key(row) or row for row in rows] if repeated else rows)


def _loads(text: str) -> tuple[Any, bool]:
    """The value of a JSON text, and whether an object has a key twice: a BadRow stands for it."""
    repeated = False

    def object_of(pairs: list[tuple[str, Any]]) -> Any:
        nonlocal repeated
        fields = dict(pairs)
        if len(fields) == len(pairs):
            return fields
        repeated = True
        counts = Counter(key for key, _ in pairs)
        key = next(key for key in counts if counts[key] > 1)
        return BadRow(f"the key {key!r:.60} stands {counts[key]} times in one object; remove all but one")

    return json.loads(text, object_pairs_hook=object_of), repeated


def _repeated_key(value: Any) -> BadRow | None:
    """The first BadRow that `_loads` put somewhere into `value`."""
    if isinstance(value, BadRow):
        return value
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next(filter(None, map(_repeated_key, items)), None)


def _json_lines(file: Path) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield f"line {number}", _parsed(line)


def _parsed(line: bytes) -> dict[str, Any] | BadRow:
    try:
        row, repeated = _loads(line.decode("utf-8-sig"))
        return (_repeated_key(row) if repeated else None) or _object(row)
    except UnicodeDecodeError as error:
        return BadRow(f"not UTF-8 at byte {error.start}; save the file as UTF-8")
    except json.JSONDecodeError as error:
        return BadRow(f"invalid JSON at column {error.colno}: {error.msg}; a line holds one whole object")
    except (ValueError, RecursionError) as error:
        return BadRow(_parser_limit(error))


def _parser_limit(error: ValueError | RecursionError) -> str:
    """Why Python refuses a valid JSON text."""
    return "nested too deeply" if isinstance(error, RecursionError) else "a number of thousands of digits"


def _object(row: Any) -> dict[str, Any] | BadRow:
    return (
        row
        if isinstance(row, (dict, BadRow))
        else BadRow(f"a JSON object is expected, not {type(row).__name__}")
    )


def _numbered(rows: Iterable[Any]) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    return ((f"row {number}", _object(row)) for number, row in enumerate(rows, start=1))


def _parquet(file: Path) -> Iterator[Any]:
    row = 0
    try:
        table = pq.ParquetFile(file)
        _check_columns(file, table.schema_arrow.names)
        for batch in table.iter_batches():
            for value in batch.to_pylist():
                row += 1
                yield value
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: text is not UTF-8
        where = f"damaged after row {row}" if row else "not a Parquet file"
        raise UserError(f"{file}: {where} ({error!s:.200}). Write it again, or use JSONL.") from error


def _check_columns(file: Path, names: list[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{file}: the column {repeated[0]!r:.60} stands there twice. Remove one of the two.")


def _hub(source: Source) -> Iterable[Any]:
    local = Path(source.path).expanduser()
    if local.is_file() or (local.is_absolute() and not local.exists()):
        raise UserError(
            f"{source.path}: not a readable file. Use the path of a file that ends in .jsonl, .json or "
            ".parquet, or the id of a hub dataset such as Anthropic/hh-rlhf."
        )
    try:
        if os.path.isdir(source.path):
            _check_folder(source)
        dataset = datasets.load_dataset(
            source.path, source.name, split=source.split, revision=source.revision
        )
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        if os.path.isdir(source.path):
            raise _fault_of_folder(source, error) from error
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"hub dataset {describe(source)} could not be loaded: {reason}. Check its id, `name`, `split` "
            "and `revision`, and the network; a local file's path must end in .jsonl, .json or .parquet."
        ) from error
    if not isinstance(dataset, datasets.Dataset):
        raise UserError(f"hub dataset {describe(source)}: `split` must name one split, such as train.")
    rows: Iterable[Any] = dataset
    return rows


def _check_folder(source: Source) -> None:
    """Raise UserError if `datasets` would leave out a file of a local folder."""
    folder = Path(source.path)
    if source.revision is not None:
        raise UserError(f"{folder}: a folder has no revision. Leave `revision` out of this source.")
    check_number(folder)
    builder = datasets.load_dataset_builder(source.path, source.name)
    if source.name is None and len(builder.builder_configs) == 1:  # else other configurations have files, too
        splits = builder.config.data_files or {}
        check_all_read(folder, {Path(file).resolve() for files in splits.values() for file in files})


def _fault_of_folder(source: Source, error: Exception) -> UserError:
    """What is wrong with a local folder: a row of one of its files, or what `datasets` says."""
    for file in data_files(Path(source.path)):
        if str(file).endswith(DATA_FILES):
            try:
                rows = read(source.model_copy(update={"path": str(file)}))
                if bad := next(((place, row) for place, row in rows if isinstance(row, BadRow)), None):
                    return UserError(f"{file}, {bad[0]}: {bad[1]}. Correct or remove the row.")
            except UserError as fault:
                return fault
    reason = str(error.__cause__ or error).strip().partition("\n")[0]
    return UserError(
        f"{source.path}: this folder could not be read as a data set: {reason:.300}. All of its files need "
        "the same columns and types; `split` and `name` must be among those of the folder."
    )
