"""Read an experiment from its YAML and the command line.

The file overrides defaults, and `key=value` on the command line overrides the file. A relative path in the
file is relative to the file's folder, one on the command line to the working directory. The default
DeepSpeed JSON is in this folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError

from configs.cross_checks import contradictions
from configs.errors import UserError
from configs.raw_experiment import RawExperiment
from configs.schema import Experiment


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


def dump_experiment(experiment: Experiment) -> str:
    """Return the experiment as YAML with every default. Loading it gives an equal experiment."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
