"""Read an experiment from its YAML and the command line.

The file overrides defaults, and `key=value` on the command line overrides the file. A relative path in the
file is relative to the file's folder, one on the command line to the working directory. The default
DeepSpeed JSON is in this folder.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from configs.cross_checks import contradictions
from configs.error_messages import Keys, known_part, undotted, without_forms
from configs.errors import UserError
from configs.raw_experiment import RawExperiment
from configs.schema import STAGES, Experiment
from configs.task_file import source_of_task

# Something valid for each key that must be given, so that the rest of an experiment can be read without it.
REQUIRED: dict[str, Any] = {
    "name": "unnamed",
    "base": {"model": "tiny-random"},
    "data": {stage: {"path": "missing"} for stage in STAGES},
}
MOST_ROUNDS = 20  # a section is validated as a whole only once each of its values is valid


class ExperimentError(UserError):
    """An experiment is wrong. What is right of it may be read, to find what else is wrong.

    Attributes:
        wrong: the keys with an error, and those that an unknown key may stand for.
        rest: the experiment with something valid at each wrong key; None if it cannot be read at all.
    """

    def __init__(self, message: str, wrong: frozenset[Keys], rest: Experiment | None) -> None:
        super().__init__(message)
        self.wrong, self.rest = wrong, rest


def load_experiment(file: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Return the experiment of `file` with `key=value` overrides. Its local paths are absolute.

    Raises:
        ExperimentError: the message lists all errors at once, those of the file with their lines.
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
        raise ExperimentError(raw.message(), *_right_part(raw))
    return experiment


def _right_part(raw: RawExperiment) -> tuple[frozenset[Keys], Experiment | None]:
    """All wrong keys, and the experiment without their values."""
    if raw.broken:
        return frozenset(raw.wrong), None
    wrong, tree = set(raw.wrong), copy.deepcopy(raw.tree)
    for _ in range(MOST_ROUNDS):
        try:
            return frozenset(wrong), Experiment.model_validate(tree)
        except ValidationError as error:
            for fault in error.errors(include_url=False):
                keys = known_part(fault["loc"])
                location = without_forms(fault["loc"])
                if fault["type"] in ("extra_forbidden", "invalid_key") and len(location) > len(keys):
                    keys = (*keys, str(location[len(keys)]))
                wrong.add(keys)
                _remove(tree, keys)
        _fill(tree, REQUIRED)
    return frozenset(wrong), None


def _remove(tree: dict[str, Any], keys: Keys) -> None:
    """Remove what stands at `keys`, or the value that stands where a section around it belongs."""
    section = tree
    for key in keys[:-1]:
        if not isinstance(section.get(key), dict):
            section.pop(key, None)
            return
        section = section[key]
    section.pop(keys[-1] if keys else "", None)


def _fill(tree: dict[str, Any], required: Mapping[str, Any]) -> None:
    """Add what is missing of `required`."""
    for key, value in required.items():
        found = tree.setdefault(key, copy.deepcopy(value))
        if isinstance(found, dict) and isinstance(value, dict):
            _fill(found, value)


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
        raw.wrong.add(undotted(key))
        raw.errors.append(str(error))
        source["path"] = source["task"]  # one error is enough
    else:
        source |= {name: value for name, value in of_task.items() if source.get(name) is None}


def dump_experiment(experiment: Experiment) -> str:
    """Return the experiment as YAML with every default. Loading it gives an equal experiment."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
