"""Faults of a request, in groups: all of them are told at once, before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

from configs.error_messages import Keys
from configs.errors import UserError

Group = Literal[
    "configuration",
    "environment",
    "machine",
    "stages",
    "files",
    "bases and chat templates",
    "adapters",
    "data",
    "labellers, judges and rewards",
]


class Fault(NamedTuple):
    """What is wrong with the value of a key."""

    keys: Keys
    text: str


class Faults:
    """Faults by group, each told once."""

    def __init__(self) -> None:
        self._groups: dict[Group, list[str]] = {}
        self._told: set[str] = set()

    def add(self, group: Group, fault: str) -> None:
        """Add a fault of one or more lines, unless it has been told: two checks may meet the same one."""
        if fault not in self._told:
            self._told.add(fault)
            self._groups.setdefault(group, []).append(fault)

    @contextmanager
    def of(self, group: Group) -> Iterator[None]:
        """Add what the body refuses, and continue behind it."""
        try:
            yield
        except UserError as error:
            self.add(group, str(error))

    def refuse(self) -> None:
        """Raise UserError if there are faults; with the names of their groups if these are several."""
        if len(self._groups) == 1:
            raise UserError("\n".join(*self._groups.values()))
        if self._groups:
            raise UserError(f"nothing has started. Correct these first.\n{self._in_groups()}")

    def _in_groups(self) -> str:
        return "\n".join(
            f"{group}:\n" + "\n".join(f"  {line}" for fault in faults for line in fault.splitlines())
            for group, faults in self._groups.items()
        )
