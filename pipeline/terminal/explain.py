"""`tristage explain`: a key or a section of the configuration, as the schema describes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from configs.error_messages import (
    Keys,
    Node,
    allowed,
    dotted,
    is_section,
    items_of,
    node_at,
    one_or_several,
    property_of,
    undotted,
    unknown_key,
)
from configs.errors import UserError

# The page on a key is that of its longest prefix here.
PAGES = {
    "": "docs/reference/configuration.md",
    "data": "docs/guides/datasets.md",
    "deepspeed": "docs/guides/several-gpus.md",
    "ppo": "docs/reference/ppo.md",
    "ppo.judge": "docs/guides/functions.md",
    "ppo.rewards": "docs/guides/functions.md",
    "ppo.rollout.vllm": "docs/reference/vllm.md",
    "rm.rankings.labeller": "docs/guides/labellers.md",
    "tracking": "docs/guides/wandb.md",
}
NO_DESCRIPTION = "(no description)"


def explain(console: Console, key: str) -> None:
    """Print a section with its keys, or a key with its default and allowed values. "" is the whole file.

    Raises:
        UserError: the schema has no such key.
    """
    keys = undotted(key) if key else ()
    node = node_at(keys)
    if node is None:
        unknown, reason = unknown_key(keys)
        raise UserError(f"{dotted(unknown)}: {reason}")
    items = items_of(node)
    if one_or_several(keys):
        lines = _section(f"{key} (one, or a list)", node)
    elif items is not None and is_section(items):
        lines = _section(f"{key} (a list)", items)
    else:
        lines = _section(key or "an experiment", node) if is_section(node) else _key(keys, node)
    cropped = console.is_terminal  # a file or a pipe gets whole lines
    for line in (*lines, f"page: {page_of(keys)}"):
        console.print(Text(line, no_wrap=cropped, overflow="ellipsis"), soft_wrap=not cropped)


def page_of(keys: Sequence[str]) -> str:
    """The page of the docs on a key."""
    prefixes = (".".join(keys[:depth]) for depth in range(len(keys), -1, -1))
    return next(PAGES[prefix] for prefix in prefixes if prefix in PAGES)


def _section(title: str, node: Node) -> Iterator[str]:
    """What a section is for, and a line for each of its keys: name, default, description."""
    yield f"{title}: {_sentence(node.get('description'))}"
    names = list(node["properties"])
    rows = [(name, _default(node, name), _about(node, name)) for name in names]
    width, wide = (max(len(row[column]) for row in rows) for column in (0, 1))
    for name, default, about in rows:
        yield f"  {name:<{width}}  {default:<{min(wide, 12)}}  {about}"


def _key(keys: Keys, node: Node) -> Iterator[str]:
    """What a key does, its default and its allowed values."""
    *section, name = keys
    parent = node_at(section)
    assert parent is not None
    yield f"{dotted(keys)}: {_about(parent, name)}"
    yield f"default: {_default(parent, name)}"
    yield f"allowed: {allowed(property_of(parent, name))}"


def _default(section: Node, name: str) -> str:
    """The default of a key as YAML has it; "(section)" and "(required)" for those that have none."""
    if name in section.get("required", ()):
        return "(required)"
    if is_section(property_of(section, name)):
        return "(section)"
    return _as_yaml(section["properties"][name]["default"])


def _about(section: Node, name: str) -> str:
    own = section["properties"][name].get("description")
    return _sentence(own or property_of(section, name).get("description"))


def _sentence(text: str | None) -> str:
    return " ".join(text.split()) if text else NO_DESCRIPTION


def _as_yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
