"""Read the rows of tables: Parquet, CSV and TSV files."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from configs.errors import UserError
from data.sources.bad_rows import BadRow
from data.sources.json_rows import Rows, numbered
from data.sources.opening import open_data

LONGEST_CELL = 2**30  # characters; Python's own limit is 131,072


class Cells(dict[str, Any]):
    """A row of a CSV or TSV file: all of its values are text (see `data.sources.cells`)."""


def read_parquet(file: Path) -> Rows:
    return numbered(_parquet(file))


def read_csv(file: Path) -> Rows:
    return _separated(file, ",")


def read_tsv(file: Path) -> Rows:
    return _separated(file, "\t")


def _parquet(file: Path) -> Iterator[Any]:
    row = 0
    try:
        with open_data(file) as stream:
            compressed = not file.name.lower().endswith(".parquet")
            table = pq.ParquetFile(pa.BufferReader(stream.read()) if compressed else stream)
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


def _separated(file: Path, separator: str) -> Rows:
    """A row for each record below the header. An empty cell is no value."""
    csv.field_size_limit(LONGEST_CELL)
    with open_data(file) as stream:
        records = csv.reader(_lines(file, stream), delimiter=separator, strict=True)
        header, start = None, 1
        try:
            for record in records:
                if record and header is None:
                    header = record
                    _check_header(file, header, separator)
                elif record and header is not None:
                    yield f"line {start}", _row(header, record)
                start = records.line_num + 1
        except csv.Error as error:
            raise UserError(f"{file}, line {start}: {_csv_fault(error)}") from error


def _lines(file: Path, stream: Iterator[bytes]) -> Iterator[str]:
    """The lines of a file as text, without the mark that Windows puts before the first."""
    for number, line in enumerate(stream, start=1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{file}, line {number}: not UTF-8 at byte {error.start}. Save the file as UTF-8."
            ) from error
        yield text.removeprefix("\ufeff") if number == 1 else text


def _check_header(file: Path, header: list[str], separator: str) -> None:
    _check_columns(file, header)
    if not all(name.strip() for name in header):
        number = [bool(name.strip()) for name in header].index(False) + 1
        raise UserError(
            f"{file}: column {number} has no name in the first line. Name or remove it; pandas leaves its "
            "index out with `index=False`."
        )
    other = next((mark for mark in ",;\t" if mark != separator and mark in header[0]), None)
    if len(header) == 1 and other:
        names = {",": "commas", ";": "semicolons", "\t": "tabs"}
        raise UserError(
            f"{file}: {names[other]} separate the columns, not {names[separator]}. Save it with "
            f"{names[separator]}."
        )


def _row(header: list[str], record: list[str]) -> Cells | BadRow:
    if len(record) != len(header):
        return BadRow(
            f"{len(record)} cells in a table of {len(header)} columns; put quotes around a cell that holds "
            "the separator or a line break"
        )
    return Cells((name, cell) for name, cell in zip(header, record, strict=True) if cell)


def _csv_fault(error: csv.Error) -> str:
    text = str(error)
    if text.startswith("unexpected end"):
        return "a quote opens here and never closes. Close it, or write a quote inside of quotes twice."
    if text.startswith("new-line"):
        return "a carriage return stands alone. Save the file with line breaks of Unix or Windows."
    if text.startswith("field larger"):
        return f"a cell of over {LONGEST_CELL:,} characters. Shorten it, or close its quotes."
    return f"{text}. Put quotes around the cell, and write a quote inside of quotes twice."
