"""The configuration's reference, from the schema: a table for each section, an anchor for each key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from configs.error_messages import Keys, Node, allowed, is_section, items_of, node_at
from docs.generators.markdown import code, prose, table, text

HEAD = ("key", "default", "allowed", "what it does")
REQUIRED = "*required*"
# A million or more, which only catches slips.
NO_REAL_BOUND = re.compile(r" (?:≥ -[\d,]+ )?and ≤ \d{1,3}(?:,\d{3}){2,}")
OF_ITEMS = "[]"  # ends the path of a list whose items are sections: ppo.rewards[]


def configuration() -> str:
    """A heading and a table for each section. Sections with the same keys and defaults share one."""
    return "\n\n".join(_part(paths, node) for paths, node in sections())


def sections() -> list[tuple[list[str], Node]]:
    """Each distinct section with the dotted paths where it stands, in the order of the schema."""
    found: list[tuple[list[str], Node]] = []
    for path, node in _walk(()):
        same = [paths for paths, other in found if other["properties"] == node["properties"]]
        if same:
            same[0].append(path)
        else:
            found.append(([path], node))
    return found


def leaves(path: str, node: Node) -> dict[str, Node]:
    """The keys of the section at `path` that hold a value, not keys, with their schemas."""
    return {key: child for key, child in node["properties"].items() if not _section_at(path, key)}


def _walk(keys: Keys) -> Iterator[tuple[str, Node]]:
    """The section at `keys` and the sections in it, each with its dotted path."""
    node = node_at(keys)
    assert node is not None
    if is_section(node):
        yield ".".join(keys), node
        for key in node["properties"]:
            yield from _walk((*keys, key))
    elif (items := items_of(node)) and is_section(items):
        yield ".".join(keys) + OF_ITEMS, items


def _section_at(path: str, key: str) -> bool:
    """Whether `key` in the section at `path` is a section. Those of a list's items hold values only."""
    node = node_at((*filter(None, path.split(".")), key))
    return node is not None and is_section(node)


def _part(paths: list[str], node: Node) -> str:
    """Heading, description and table of one section, which may stand at several paths."""
    title = ", ".join(map(code, paths)) if paths != [""] else "The experiment"
    anchors = "".join(f'<a id="{_anchor(path)}"></a>' for path in paths)
    notes = [f"- {code(path)}: {prose(note)}" for path in paths if (note := _own_description(path))]
    rows = [_row(paths, key, child, node) for key, child in leaves(paths[0], node).items()]
    about = prose(node["description"].split("\n\n")[0])
    parts = [anchors, f"## {title}", about, "\n".join(notes), table(HEAD, rows)]
    return "\n\n".join(filter(None, parts))


def _own_description(path: str) -> str:
    """What the schema says of the section at this path alone, such as its default; "" if nothing."""
    *section, key = path.removesuffix(OF_ITEMS).split(".")
    parent = node_at(section)
    assert parent is not None
    child = parent["properties"].get(key, {})
    return "" if path.endswith(OF_ITEMS) else child.get("description", "")


def _row(paths: list[str], key: str, child: Node, section: Node) -> list[str]:
    anchors = "".join(f'<a id="{f"{path}.{key}".lstrip(".")}"></a>' for path in paths)
    required = key in section.get("required", ())
    return [
        anchors + code(key),
        REQUIRED if required else _default(child),
        _allowed(paths[0], key, child),
        prose(child.get("description", "")),
    ]


def _allowed(path: str, key: str, child: Node) -> str:
    if "$ref" in child.get("items", {}):
        inner = f"{path}.{key}{OF_ITEMS}"
        return f"a list of sections, see [{code(inner)}](#{_anchor(inner)})"
    return text(NO_REAL_BOUND.sub("", allowed(child)))


def _anchor(path: str) -> str:
    return path.replace(OF_ITEMS, "-items") or "experiment"


def _default(child: Node) -> str:
    """The default as YAML would have it. JSON is YAML, but for the quotes that plain words do not need."""
    value = child["default"]
    if value is None:
        return "none"
    return code(value if isinstance(value, str) else _flow(value))


def _flow(value: Any) -> str:
    """A value on one line. Of the items of a list of sections, the first key is enough."""
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, dict):
        key, first = next(iter(value.items()))
        return f"{{{key}: {first}}}"
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)
