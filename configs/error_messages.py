"""Error messages about a key: what is wrong, what is allowed, and which key was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic_core import ErrorDetails

from configs.safe_text import REDACTED, may_hold_secret
from configs.schema import FORMS, Experiment

Keys = tuple[str, ...]
Node = Mapping[str, Any]  # a node of the JSON schema

SCHEMA = Experiment.model_json_schema()
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
MAX_SHOWN = 100
MAX_KEYS = 12  # that a message lists
TYPES = {"integer": "an integer", "number": "a number", "boolean": "true or false", "null": "null"}

_OF_BASE = "it starts by changing the weights of the base, which four roles share"
_FORMATS = {  # as other programs name them
    "alpaca": "demonstration",
    "dolly": "demonstration",
    "kto": "demonstration",
    "sharegpt": "conversation, or with `chosen` and `rejected` preference",
    "openai": "conversation",
    "messages": "conversation",
    "hh": "preference",
    "dpo": "preference",
}
ABSENT: Mapping[
    Keys, Mapping[str, str]
] = {  # values that people know from other programs, and why they are not here
    **{
        ("data", stage, "format"): {
            name: f"such rows have the format {own}" for name, own in _FORMATS.items()
        }
        for stage in ("sft", "rm", "ppo")
    },
    ("adapter", "init"): dict.fromkeys(("pissa", "olora", "corda"), _OF_BASE),
    ("sft", "method"): {
        "bottleneck": "PEFT has no bottleneck adapters, and AdapterHub's `adapters` does not install beside "
        "transformers 5"
    },
}


def node_at(keys: Sequence[str]) -> Node | None:
    """The schema of the value at `keys`, or None for an unknown key."""
    node: Node = SCHEMA
    for key in keys:
        child = items_of(node) if key.isdecimal() else _resolved(node).get("properties", {}).get(key)
        if child is None:
            return None
        node = child
    return _resolved(node)


def property_of(section: Node, name: str) -> Node:
    """The node of a known key of a section, without what only the key says, such as a default."""
    return _resolved(section["properties"][name])


def items_of(node: Node) -> Node | None:
    """The node of the items, if a node is a list, or may be one."""
    lists = [option for option in node.get("oneOf", (node,)) if option.get("type") == "array"]
    return _resolved(lists[0]["items"]) if lists else None


def shortened(text: str) -> str:
    """`text`, cut to the length that a message has room for."""
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def shown(value: Any) -> str:
    """A value in a message: cut, and without what may be a secret."""
    text = "null" if value is None else f"{value!r:.60}"
    return REDACTED if may_hold_secret(repr(value)) else text


def dotted(keys: Sequence[str]) -> str:
    """`section.key` or `section.list[0].key`, with long parts shortened."""
    parts = (f"[{key}]" if key.isdecimal() else f".{shortened(key)}" for key in keys)
    return "".join(parts).removeprefix(".")


def undotted(text: str) -> Keys:
    """The keys of `section.list[0].key`."""
    return tuple(re.sub(r"\[(\d+)\]", r".\1", text).split("."))


def default(keys: Sequence[str]) -> Any:
    """The default of a known key that has one."""
    node = node_at(keys)
    assert node is not None
    return node["default"]


def is_section(node: Node) -> bool:
    """Whether a schema node is a section, not a value."""
    return "properties" in node


def may_be_null(keys: Sequence[str]) -> bool:
    """Whether a known key accepts null as a value."""
    *section, key = keys
    parent = node_at(section)
    if parent is None or not is_section(parent):
        return False
    return {"type": "null"} in parent["properties"][key].get("anyOf", ())


def one_or_several(keys: Sequence[str]) -> bool:
    """Whether a known key takes one section or a list of them."""
    *section, key = keys or ("",)
    parent = node_at(section)
    return parent is not None and "oneOf" in parent.get("properties", {}).get(key, {})


def all_keys(node: Node = SCHEMA, prefix: Keys = ()) -> Iterator[Keys]:
    """Every key path of the schema, including sections."""
    for key, child in node.get("properties", {}).items():
        yield (*prefix, key)
        yield from all_keys(_resolved(child), (*prefix, key))


def unknown_key(keys: Sequence[str]) -> tuple[Keys, str]:
    """The shortest unknown prefix of `keys`, and a message with what is allowed there."""
    depth = next(n for n in range(1, len(keys) + 1) if node_at(keys[:n]) is None)
    section, key = tuple(keys[: depth - 1]), keys[depth - 1]
    parent = node_at(section)
    assert parent is not None
    if not is_section(parent):
        return tuple(keys[:depth]), f"unknown key; {dotted(section)} holds {allowed(parent)}, not keys"
    guess = _did_you_mean([dotted(path) for path in similar_keys(section, key)])
    return tuple(keys[:depth]), f"unknown key; {_before(guess, _siblings(section, parent))}"


def similar_keys(section: Keys, key: str) -> list[Keys]:
    """Known keys that an unknown `key` of a section may stand for: a similar one there, or its namesakes."""
    node = node_at(section)
    assert node is not None
    similar = [(*section, match) for match in difflib.get_close_matches(key, node["properties"], n=1)]
    return similar or [path for path in all_keys() if path[-1] == key]


def meant_by(unknown: Keys) -> set[Keys]:
    """An unknown key, and the known ones that it may stand for."""
    section = unknown[:-1]
    node = node_at(section)
    assert node is not None
    return {unknown, *(similar_keys(section, unknown[-1]) if is_section(node) else ())}


def overlap(keys: Sequence[str], other: Sequence[str]) -> bool:
    """Whether one key is the other, or a section around it."""
    return all(part == counterpart for part, counterpart in zip(keys, other, strict=False))


def _siblings(section: Keys, node: Node) -> str:
    """The keys of a section, or where they are listed if they are many."""
    name, keys = dotted(section), list(node["properties"])
    if len(keys) > MAX_KEYS:
        return f"`tristage explain {name}` lists the keys of {name}"
    return f"allowed {'in ' + name if section else 'here'}: {', '.join(keys)}"


def allowed(node: Node) -> str:
    """The values that a schema node accepts, in words."""
    if "anyOf" in node:
        return " or ".join(allowed(_resolved(option)) for option in node["anyOf"])
    if "enum" in node:
        return "one of " + ", ".join(map(str, node["enum"]))
    if "const" in node:
        return str(node["const"])
    if is_section(node):
        keys = list(node["properties"])
        more = f" and {len(keys) - MAX_KEYS} more" if len(keys) > MAX_KEYS else ""
        return "a section with the keys " + ", ".join(keys[:MAX_KEYS]) + more
    if items := items_of(node):
        return f"a list of {allowed(items)}"
    if node["type"] == "string":
        length = f" of at most {node['maxLength']} letters" if "maxLength" in node else ""
        return f"text{length}" + (f" matching {node['pattern']}" if "pattern" in node else "")
    bounds = [f"{sign} {_number(node[bound])}" for bound, sign in BOUNDS.items() if bound in node]
    return " ".join([TYPES[node["type"]], " and ".join(bounds)]).rstrip()


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def known_part(location: Sequence[int | str]) -> Keys:
    """The key of a pydantic error: its location without union members, as far as the schema knows it."""
    keys: Keys = ()
    for part in without_forms(location):
        if node_at((*keys, str(part))) is None:
            break
        keys = (*keys, str(part))
    return keys


def without_forms(location: Sequence[int | str]) -> list[int | str]:
    """The location of a pydantic error without the names of the forms that a stage's sources have."""
    return [
        part
        for depth, part in enumerate(location)
        if not (depth == 2 and location[0] == "data" and part in FORMS)
    ]


def reason(error: ErrorDetails, node: Node) -> str:
    """The message for a pydantic error at a key whose schema is `node`."""
    if error["type"] == "value_error":  # a message of the schema
        return str(error["ctx"]["error"])
    hint = f"; allowed: {allowed(node)}"
    if "description" in node and not is_section(node):
        hint += f" ({node['description']})"
    if error["type"] == "missing":
        return "missing" + hint
    value = error["input"]
    if error["type"] == "too_short":
        return "[] is not allowed; give at least one"
    if isinstance(value, str):
        keys = tuple(key for key in known_part(error["loc"]) if not key.isdecimal())
        absent = ABSENT.get(keys, {}).get(value.lower().partition("_")[0])
        if absent:
            return f"{shown(value)} is not here: {absent}{hint}"
        choices = [str(choice) for choice in _choices(node)]
        guess = _did_you_mean(difflib.get_close_matches(value, choices, n=1))
        several = "," in value and keys[:1] == ("ppo",)
        sweep = "; `tristage sweep` tries several values" if several else ""
        return f"{shown(value)} is not allowed; {_before(guess, hint.removeprefix('; '))}{sweep}"
    text = f"{shown(value)} is not allowed{hint}"
    if error["type"] == "string_type" and value is not None and not isinstance(value, (dict, list)):
        return text + "; put quotes around it to make it text"
    return text


def _choices(node: Node) -> list[Any]:
    options = [choice for option in node.get("anyOf", []) for choice in _choices(_resolved(option))]
    return options + list(node.get("enum", [])) + ([node["const"]] if "const" in node else [])


def _did_you_mean(options: Sequence[str]) -> str:
    return f"did you mean {' or '.join(options)}?" if options else ""


def _before(guess: str, rest: str) -> str:
    """A question, if there is one, before the sentence that explains it."""
    return f"{guess} {rest[0].upper()}{rest[1:]}" if guess else rest


def _resolved(node: Node) -> Node:
    """The node that `node` refers to, if it is a reference, an optional one, or one or a list of them."""
    options = [option for option in node.get("anyOf", (node,)) if option != {"type": "null"}]
    if "oneOf" in node:
        options = [option for option in node["oneOf"] if "$ref" in option]
    if len(options) == 1 and "$ref" in options[0]:
        return SCHEMA["$defs"][options[0]["$ref"].rsplit("/", 1)[-1]]
    return node
