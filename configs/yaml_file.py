"""Read a user's YAML: its values, the line of each key, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError

from configs.errors import UserError
from configs.regular_file import read_regular_file
from configs.yaml_loader import Loader

Keys = tuple[str, ...]
MAX_DEPTH = 8  # above the schema's depth
MAX_FILE_BYTES = 2**16  # far above any experiment; PyYAML reads 30 KB a second
MAX_VALUES = 100_000  # after all anchors are expanded


class BadYaml(ValueError):
    """A text or file that is no YAML. The message says why, and what to do."""


class Parsed(NamedTuple):
    """The values of a YAML text, the line of each key, and the keys given twice with both lines."""

    values: Any
    lines: dict[Keys, int]
    duplicates: list[tuple[Keys, int, int]]


def read_yaml(file: Path, key: str) -> Any:
    """The values of a YAML file.

    Args:
        key: of the configuration, or option, for messages.

    Raises:
        UserError: it cannot be read, is no YAML, or gives a key twice.
    """
    try:
        values, _, duplicates = read_parsed(file)
    except BadYaml as fault:
        raise UserError(f"{key}: {file!s:.200}: {fault}.") from None
    if duplicates:
        keys, _, line = duplicates[0]
        raise UserError(f"{key}: {file!s:.200}: {'.'.join(keys)!s:.100} is given twice, line {line}.")
    return values


def first_fault(error: ValidationError, section: type[BaseModel]) -> str:
    """The first of pydantic's errors about the values of a YAML file: its key, and what is wrong."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "model_type":
        fault = "it holds no `key: value`"
    else:
        fault = f"{first['msg'].removeprefix('Value error, '):.250}"
    if first["type"] in ("extra_forbidden", "missing", "model_type") and len(first["loc"]) < 2:
        fault += f"; the keys are {', '.join(section.model_fields)}"
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    where = "".join(parts).lstrip(".")
    return f"{where:.60}: {fault}" if where else fault


def read_parsed(file: Path) -> Parsed:
    """Parse a YAML file.

    Raises:
        BadYaml: it cannot be read, is not UTF-8, or see `parse`.
    """
    try:
        text = read_regular_file(file, MAX_FILE_BYTES).decode("utf-8-sig")
    except OSError as error:
        fault = f"cannot be read: {error.strerror}; give the path of a YAML"
    except UnicodeDecodeError as error:
        fault = f"not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}; save it as UTF-8"
    except ValueError as error:  # it is too long
        fault = str(error)
    else:
        return parse(text)
    raise BadYaml(fault)


def parse(text: str) -> Parsed:
    """Parse a YAML text.

    Raises:
        BadYaml: the text is not YAML, is nested too deeply, or has anchors that expand to too many values.
    """
    try:
        return _parsed(text)
    except (yaml.YAMLError, ValueError) as error:
        raise BadYaml(_fault(error)) from error


def _parsed(text: str) -> Parsed:
    if len(text) > MAX_FILE_BYTES:
        raise ValueError(f"longer than {MAX_FILE_BYTES:,} bytes")
    loader = Loader(text)
    try:
        root = loader.get_single_node()
        if (values := _count_values(root, {})) > MAX_VALUES:
            raise ValueError(f"its anchors expand to {values:,} values; write the values out")
        lines: dict[Keys, int] = {}
        duplicates: list[tuple[Keys, int, int]] = []
        for keys, line in _key_lines(root, ()):
            if keys in lines:
                duplicates.append((keys, lines[keys], line))
            lines.setdefault(keys, line)
        return Parsed(None if root is None else loader.construct_document(root), lines, duplicates)
    except (AttributeError, IndexError, KeyError, TypeError) as error:  # of `!!bool maybe`, `!!int ''`, ...
        raise ValueError("a value does not fit its tag; write plain values without !!") from error
    except RecursionError:
        raise ValueError("nested too deeply; an experiment has only sections within sections") from None
    finally:
        loader.dispose()


def _count_values(node: yaml.Node | None, counts: dict[int, int]) -> int:
    """Number of values below a node with every alias expanded.

    Raises:
        ValueError: an anchor holds itself.
    """
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if counts.get(id(node)) == 0:
        raise ValueError("an anchor holds itself; write the values out")
    if id(node) not in counts:
        counts[id(node)] = 0
        parts = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
        counts[id(node)] = 1 + sum(_count_values(part, counts) for part in parts)
    return counts[id(node)]


def _key_lines(node: yaml.Node | None, prefix: Keys) -> Iterator[tuple[Keys, int]]:
    if len(prefix) > MAX_DEPTH:
        return
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _key_lines(item, (*prefix, str(number)))
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode) and key.value != "<<":
            yield (*prefix, key.value), key.start_mark.line + 1
            yield from _key_lines(value, (*prefix, key.value))


def _fault(error: yaml.YAMLError | ValueError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f"not YAML: {' '.join(str(error).split()):.200}"
    mark = error.problem_mark
    remedy = "; indent with spaces, not tabs" if "'\\t'" in str(error.problem) else ""
    return f"not YAML, line {mark.line + 1} column {mark.column + 1}: {error.problem!s:.200}{remedy}"
