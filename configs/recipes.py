"""New experiments for `tristage init`: a shipped YAML, or the template for own data, under another name.

A copy lies elsewhere, so its relative paths become those of the shipped files.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from configs.raw_experiment import is_local_path
from configs.schema import MAX_NAME

FOLDER = Path(__file__).parent
RECIPES = ("demo", "hh", "rm-hh", "rm-k-wise", "qwen3-8b")  # each is configs/NAME.yaml
OWN_DATA = "templates/own-data.yaml"  # its paths are those of the person's files, so they stay


def recipe(name: str | None, file: Path) -> str:
    """The text of a new experiment for `file`: a recipe, or without a `name` the template for own data."""
    source = FOLDER / (f"{name}.yaml" if name else OWN_DATA)
    text = source.read_text(encoding="utf-8")
    # The header and its commands: the shipped files, too, are not where the new one lies.
    text = text.replace(f"configs/{source.name}", str(file))
    text = text.replace("configs/deepspeed/", f"{FOLDER}/deepspeed/")
    experiment = experiment_name(file)
    text = text.replace(f"runs/{source.stem}", f"runs/{experiment}")
    text = re.sub("(?m)^name: [^ \n]+", f"name: {experiment}", text)
    return _with_absolute_paths(text, source.parent) if name else text


def experiment_name(file: Path) -> str:
    """The file's name without its ending, in a form that an experiment's name may have."""
    plain = re.sub("[^A-Za-z0-9._-]+", "-", file.stem).lstrip("._-")[:MAX_NAME]
    return plain or "experiment"


def _with_absolute_paths(text: str, folder: Path) -> str:
    """A YAML's text in which local paths, which are relative to `folder`, are absolute."""
    pieces, end = [], 0
    for keys, node in _scalars(yaml.compose(text, yaml.SafeLoader), ()):
        if is_local_path(keys, node.value):
            path = os.path.abspath(folder / node.value)
            pieces += [text[end : node.start_mark.index], _quoted(path)]
            end = node.end_mark.index
    return "".join([*pieces, text[end:]])


def _scalars(
    node: yaml.Node | None, keys: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], yaml.ScalarNode]]:
    """Every value below a node that is not a section, with its key, in the order of the text."""
    if isinstance(node, yaml.ScalarNode):
        yield keys, node
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _scalars(value, (*keys, key.value))


def _quoted(path: str) -> str:
    """A path as YAML: as it is, or in quotes if it has letters that mean something there."""
    return path if re.fullmatch("[A-Za-z0-9/._-]+", path) else json.dumps(path)
