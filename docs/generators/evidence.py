"""Tables of measurements, from the records in docs/evidence/*.json."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from docs.generators.markdown import code, prose, table, text
from pipeline.terminal.format import show_number

FOLDER = Path(__file__).resolve().parents[1] / "evidence"
NOT_RECORDED = "not recorded"  # in place of a machine
DETAILS = '<details markdown="1"><summary>How it was measured</summary>'  # a site and a forge both fold it
Figure = bool | int | float | str


class Record(BaseModel):
    """One measurement.

    Attributes:
        table: the table that it is a row of.
        what: what was measured.
        command: what measures it again.
        n: how many times, or how much, was measured.
        figures: the results, by column.
        commit: of the code that was measured.
        machine: what it was measured on, or "not recorded".
        date: the day on which the figures were recorded.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    table: str
    what: Annotated[str, Field(min_length=1)]
    command: Annotated[str, Field(pattern=r"^(python|tristage|make) ")]
    n: Annotated[str, Field(min_length=1)]
    figures: Annotated[dict[str, Figure], Field(min_length=1)]
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{7,40}$")]
    machine: Annotated[str, Field(min_length=1)]
    date: date

    @property
    def origin(self) -> str:
        """Where the figures come from, as one line of Markdown."""
        machine = f"machine {NOT_RECORDED}" if self.machine == NOT_RECORDED else text(self.machine)
        where = f"{machine}; {text(self.n)}; commit {code(self.commit)}, {self.date.isoformat()}"
        return f"{code(self.command)}<br>{where}"


def read_records(file: Path) -> list[Record]:
    """The records of one JSON file."""
    return TypeAdapter(list[Record]).validate_json(file.read_bytes())


def evidence(name: str) -> str:
    """The table `FILE/TABLE`, and how it was measured.

    Raises:
        KeyError: no record is of this table.
    """
    file, _, wanted = name.partition("/")
    records = [record for record in read_records(FOLDER / f"{file}.json") if record.table == wanted]
    if not records:
        raise KeyError(f"docs/evidence/{file}.json has no record of the table {wanted}")
    columns = list(dict.fromkeys(column for record in records for column in record.figures))
    origins = list(dict.fromkeys(record.origin for record in records))
    rows = [_row(record, columns, origins.index(record.origin) + 1) for record in records]
    runs = "\n".join(f"{number}. {origin}" for number, origin in enumerate(origins, 1))
    return f"{table(('what', *columns, 'run'), rows)}\n\n{DETAILS}\n\n{runs}\n\n</details>"


def _row(record: Record, columns: Sequence[str], run: int) -> list[str]:
    cells = [_cell(record.figures[column]) if column in record.figures else "" for column in columns]
    return [prose(record.what), *cells, str(run)]


def _cell(figure: Figure) -> str:
    """At most three significant digits of a number, and none that the record lacks."""
    if isinstance(figure, bool):
        return "yes" if figure else "**no**"
    recorded = text(str(figure))
    return min(show_number(figure), recorded, key=len) if isinstance(figure, float) else recorded
