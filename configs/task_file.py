"""Read labelled tasks from YAML: the pools that ship, in `configs/tasks`, and files of the user."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from configs.errors import UserError
from configs.schema import names_files
from configs.task_pool import Task
from configs.yaml_file import first_fault, read_yaml

SHIPPED = Path(__file__).parent / "tasks"
ENDINGS = (".yaml", ".yml")
Values = dict[str, Any]


@cache
def shipped_pools() -> Mapping[str, Path]:
    """The file of each pool that ships, by the pool's name."""
    files = sorted(SHIPPED.glob("*.yaml"))
    return {name: file for file in files for name in _tasks_of(file, str(file))}


def read_task(reference: str, key: str) -> Task:
    """The task that `reference` names: a shipped pool, FILE.yaml with one task, or FILE.yaml:NAME.

    Args:
        key: of the configuration, or option, for messages.

    Raises:
        UserError: there is no such task, or the file is wrong.
    """
    file, name = split_reference(reference)
    if file is None:
        if reference not in shipped_pools():
            raise UserError(
                f"{key}: {reference!r:.100} is no pool that ships ({', '.join(shipped_pools())}), and no "
                "FILE.yaml or FILE.yaml:NAME. Name one of these."
            )
        file, name = shipped_pools()[reference], reference
    tasks = _tasks_of(file, key)
    if name is None and len(tasks) > 1:
        raise UserError(
            f"{key}: {file!s:.200} has the tasks {_listed(tasks)}. Name one, as in {file.name}:NAME."
        )
    name = name or next(iter(tasks))
    if name not in tasks:
        raise UserError(f"{key}: {file!s:.200} has no task {name!r:.60}. It has {_listed(tasks)}.")
    return _task(file, name, tasks[name], key)


def read_tasks(reference: str, key: str) -> list[Task]:
    """The task that `reference` names; all tasks of the file if it names a file without one of them.

    Raises:
        UserError: see `read_task`.
    """
    file, name = split_reference(reference)
    if file is None or name is not None:
        return [read_task(reference, key)]
    return [_task(file, each, values, key) for each, values in _tasks_of(file, key).items()]


def task_digest(reference: str) -> str | None:
    """SHA-256 of what a task makes of its rows; None if it cannot be read, which the stage reports."""
    try:
        task = read_task(reference, "")
    except UserError:
        return None
    values = task.model_dump(mode="json", exclude={"example", "language", "held_out"})
    if task.source:  # the rest of it stands in the experiment
        values["source"] = {"columns": task.source.columns}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def source_of_task(reference: str, key: str) -> Values:
    """Where a task says that its rows are, as the keys of a source of `data`. Its path is absolute.

    Raises:
        UserError: it does not say, or see `read_task`.
    """
    task, (file, _) = read_task(reference, key), split_reference(reference)
    if task.source is None or file is None:
        raise UserError(
            f"{key}: the task {task.name} does not say where its rows are. Give a `path` beside `task`."
        )
    return _source(task, file)


def _source(task: Task, file: Path) -> Values:
    assert task.source is not None
    given = task.source.model_dump(exclude={"columns"}, exclude_none=True, exclude_unset=True)
    path = os.path.expanduser(task.source.path)
    beside = os.path.abspath(file.parent / path)
    is_file = path.startswith((".", "/")) or os.path.lexists(beside) or names_files(path)
    return given | ({"path": beside} if is_file else {})


def split_reference(reference: str) -> tuple[Path | None, str | None]:
    """The file and the task's name in FILE.yaml:NAME; (None, None) if it names no file."""
    for ending in ENDINGS:
        if reference.endswith(ending):
            return Path(reference), None
        file, found, name = reference.rpartition(f"{ending}:")
        if found:
            return Path(f"{file}{ending}"), name
    return None, None


def _tasks_of(file: Path, key: str) -> dict[str, Values]:
    """The tasks of a file, as they stand there."""
    values = read_yaml(file, key)
    tasks = values.get("tasks") if isinstance(values, dict) else None
    if not isinstance(tasks, dict) or not tasks or not all(isinstance(each, dict) for each in tasks.values()):
        raise UserError(
            f"{key}: {file!s:.200}: it holds no tasks. Write `tasks: {{NAME: {{templates: [...]}}}}`."
        )
    if others := sorted(map(str, set(values) - {"tasks"})):
        raise UserError(f"{key}: {file!s:.200}: {others[0]!r:.60} is no key of it; its only key is tasks.")
    return {str(name): each for name, each in tasks.items()}


def _task(file: Path, name: str, values: Values, key: str) -> Task:
    try:
        if "name" in values:
            raise ValueError("name: unknown key; the name of a task is its key under tasks")
        return Task.model_validate({**_extended(values), **values, "name": name})
    except ValidationError as error:
        fault = first_fault(error, Task)
    except ValueError as error:
        fault = str(error)
    raise UserError(f"{key}: {file!s:.200}: tasks.{name}: {fault}.")


def _extended(values: Values) -> Values:
    """What a task takes over from a shipped pool. The example is of the pool's own columns."""
    pool = values.get("extends")
    if pool is None:
        return {}
    if not isinstance(pool, str) or pool not in shipped_pools():
        raise ValueError(
            f"extends: {pool!r:.60} is no pool that ships; these do: {', '.join(shipped_pools())}"
        )
    shipped = _tasks_of(shipped_pools()[pool], pool)[pool]
    return {key: value for key, value in shipped.items() if key != "example"}


def _listed(tasks: Mapping[str, Any]) -> str:
    return f"{', '.join(list(tasks)[:12])}{', ...' if len(tasks) > 12 else ''}"
