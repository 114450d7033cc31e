"""The command line's reference, from the commands of `tristage` themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from typer.main import get_command

from docs.generators.markdown import code, prose, table
from launch.commands import app

EXAMPLE = "Example: "
GENERAL = "General"  # the group of options that name none


def command_line() -> str:
    """A section for each command: what it does, an example, and its options by group."""
    program: Any = get_command(app)
    return "\n\n".join(_section(name, command) for name, command in _commands(program))


def _commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Each command with its words, those of groups of commands included."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{before}{name} ")
        else:
            yield before + name, command


def _section(name: str, command: Any) -> str:
    context = typer.Context(command, info_name=f"tristage {name}")
    rows = []
    for parameter in command.get_params(context):
        if record := parameter.get_help_record(context):
            group = vars(parameter).get("rich_help_panel") or GENERAL
            is_argument = parameter.param_type_name == "argument"
            option = parameter.metavar if is_argument else record[0]  # the record adds an argument's type
            rows.append([code(option), prose(record[1]), group])
    usage = " ".join([f"tristage {name}", *command.collect_usage_pieces(context)])
    example = f"```sh\n{command.epilog.removeprefix(EXAMPLE)}\n```"
    options = table(("option", "what it does", "group"), rows)
    return "\n\n".join([f"## {code(f'tristage {name}')}", prose(command.help), code(usage), example, options])
