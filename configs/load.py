"""Read an experiment from its YAML and the command line.

The file overrides defaults, and `key=value` on the command line overrides the file. A relative path in the
file is relative to the file's folder, one on the command line to the working directory. The default
DeepSpeed JSON is in this folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from configs.cross_checks import contradictions
from configs.errors import UserError
from configs.raw_experiment import RawExperiment
from configs.schema import STAGES, Experiment
from configs.task_file import source_of_task


def load_experiment(file: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Return the experiment of `file` with `key=value` overrides. Its local paths are absolute.

    Raises:
        UserError: the message lists all errors at once, those of the file with their lines.
    """
    raw = RawExperiment(file)
    raw.read()
    for override in overrides:
        raw.override(override)
    raw.resolve_paths()
    _add_sources_of_tasks(raw)
    try:
        experiment = Experiment.model_validate(raw.tree)
    except ValidationError as error:
        raw.add_validation_errors(error)
    else:
        for keys, reason in contradictions(experiment):
            raw.add_error(keys, reason)
    if raw.errors:
        raise UserError(raw.message())
    return experiment


def _add_sources_of_tasks(raw: RawExperiment) -> None:
    """Complete each source that names a task and no path by what the task says of its rows."""
    data = raw.tree.get("data")
    for stage in STAGES if isinstance(data, dict) else ():
        given = data.get(stage) if isinstance(data, dict) else None
        for number, source in enumerate(given if isinstance(given, list) else [given]):
            key = f"data.{stage}[{number}]" if isinstance(given, list) else f"data.{stage}"
            if isinstance(source, dict) and isinstance(source.get("task"), str) and not source.get("path"):
                _complete(raw, source, key)


def _complete(raw: RawExperiment, source: dict[str, Any], key: str) -> None:
    try:
        of_task = source_of_task(source["task"], f"{key}.task")
    except UserError as error:
        raw.errors.append(str(error))
        source["path"] = source["task"]  # one error is enough
    else:
        source |= {name: value for name, value in of_task.items() if source.get(name) is None}


def dump_experiment(experiment: Experiment) -> str:
    """Return the experiment as YAML with every default. Loading it gives an equal experiment."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
