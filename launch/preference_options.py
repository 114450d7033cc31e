"""The options that name preferences and say how their rows are read, as a source of data.rm does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import typer
from pydantic import ValidationError

from configs.errors import UserError
from configs.schema import Columns, FormatName, Source
from launch.arguments import ExperimentOptions

DATA = "Preferences"
OPTIONS = {"limit": "-n", "ignore_columns": "--ignore"}  # of keys of a source that have other names here


@dataclass(frozen=True, kw_only=True)
class PreferenceOptions(ExperimentOptions):
    """Which preferences, and how their rows are read."""

    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|HUB",
            help="preferences in any format of data.rm: a file, a folder, a pattern or a hub data set",
            rich_help_panel=DATA,
        ),
    ] = None
    format: Annotated[
        FormatName | None,
        typer.Option(help="of every row (default: its keys tell)", rich_help_panel=DATA),
    ] = None
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=NAME,...",
            help="which name rows have for a key of the formats, e.g. prompt=question,chosen=good",
            rich_help_panel=DATA,
        ),
    ] = None
    rank_by: Annotated[
        Literal["overall_score", "aspects"] | None,
        typer.Option(help="of UltraFeedback (default: overall_score)", rich_help_panel=DATA),
    ] = None
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="configuration of a hub data set", rich_help_panel=DATA),
    ] = None
    data_dir: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="folder within a hub data set", rich_help_panel=DATA),
    ] = None
    split: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="split of a hub data set or folder", rich_help_panel=DATA),
    ] = None
    revision: Annotated[
        str | None,
        typer.Option(metavar="REV", help="branch, tag or commit of a hub data set", rich_help_panel=DATA),
    ] = None
    ignore: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="keys of rows to ignore", rich_help_panel=DATA),
    ] = None
    by: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="the key of a row that names its subset (default: subset, else the file)",
            rich_help_panel=DATA,
        ),
    ] = None
    number: Annotated[
        int | None, typer.Option("-n", min=1, metavar="N", help="the first N rows", rich_help_panel=DATA)
    ] = None

    def source(self) -> Source:
        """The preferences.

        Raises:
            UserError: none are named, or an option is not of such a source.
        """
        if not self.data:
            raise UserError(
                "--data: name the preferences, such as --data pairs.jsonl or --data allenai/reward-bench."
            )
        given = {
            "path": self.data,
            "format": self.format,
            "columns": None if self.columns is None else read_columns(self.columns),
            "rank_by": self.rank_by,
            "name": self.name,
            "data_dir": self.data_dir,
            "split": self.split,
            "revision": self.revision,
            "limit": self.number,
            "ignore_columns": tuple(self.ignore.split(",")) if self.ignore else None,
        }
        try:
            return Source.model_validate({key: value for key, value in given.items() if value is not None})
        except ValidationError as error:
            raise UserError(self._refusal(error)) from None

    def _refusal(self, error: ValidationError) -> str:
        """What the first error of a source says, with the option that it is about."""
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        key = str(first["loc"][0]) if first["loc"] else "path"
        if key == "path":
            return f"--data {self.data}: {reason}."
        return f"{OPTIONS.get(key) or '--' + key.replace('_', '-')}: {reason}."


def read_columns(text: str) -> dict[str, str]:
    """The name that rows have for each key of the formats, of `key=name,...`.

    Raises:
        UserError: a part is not key=name, or its key is unknown or there twice.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        key, _, name = (word.strip() for word in part.partition("="))
        if not key or not name:
            raise UserError(
                f"--columns: {part!r:.60} is not KEY=NAME. Write prompt=question,chosen=good,rejected=bad."
            )
        if key not in Columns.model_fields:
            known = ", ".join(Columns.model_fields)
            raise UserError(f"--columns: {key!r:.60} is no key of the formats. Give one of {known}.")
        if key in found:
            raise UserError(f"--columns: {key} is there twice. Name it once.")
        found[key] = name
    return found
