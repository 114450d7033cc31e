"""Read an experiment from its YAML and the command line, and say what tells two experiments apart.

Defaults come first, then the file, then `key=value` overrides. A relative path is relative to the YAML's
folder where the file gives it, to the working directory where the command line does, and to this folder
where it is a default.
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
    """The experiment of `file` with `key=value` overrides applied; its local paths are absolute.

    Raises UserError with every error at once: of the file (with its line) and of the command line.
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
    """The resolved experiment as YAML, every default spelled out; it loads back equal."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
