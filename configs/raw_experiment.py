"""An experiment before validation: its values, the origin of each value, and all errors so far."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from configs import error_messages
from configs.error_messages import Keys
from configs.safe_text import REDACTED, may_hold_secret
from configs.schema import JUDGE_FILES, labeller_kind, names_files
from configs.yaml_file import MAX_DEPTH, BadYaml, parse, read_parsed

DEEPSPEED_CONFIG = ("deepspeed", "config")
LABELLER = ("rm", "rankings", "labeller")
LISTS_OF_PATHS = (("rm", "rankings", "earlier"), ("lineage", "parents"))
MAX_ERRORS_SHOWN = 20


@dataclass
class RawExperiment:
    """An experiment before validation.

    Attributes:
        tree: the values, as nested mappings.
        lines: line of each key in the file.
        overrides: text of each `key=value`, by key.
        errors: messages, one line each.
        wrong: the keys of these messages, and those that an unknown key may stand for.
        broken: the file could not be read, so that errors about missing keys mean nothing.
    """

    file: Path
    tree: dict[str, Any] = field(default_factory=dict)
    lines: dict[Keys, int] = field(default_factory=dict)
    overrides: dict[Keys, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    wrong: set[Keys] = field(default_factory=set)
    broken: bool = False

    def read(self) -> None:
        """Read the file. If it cannot be read, the tree stays empty and `broken` is set."""
        try:
            tree, self.lines, duplicates = read_parsed(self.file)
        except BadYaml as fault:
            self._add_file_error(str(fault))
        else:
            for keys, first, line in duplicates:
                self.wrong.add(keys)
                self.errors.append(
                    f"{self.file}:{line}: {error_messages.dotted(keys)}: given twice, first on line {first}"
                )
            if isinstance(tree, dict):
                self.tree = _without_shared_sections(tree)
            elif tree is None:
                self._add_file_error(
                    f"empty; it needs the keys {', '.join(error_messages.SCHEMA['required'])}"
                )
            else:
                self._add_file_error(
                    f"holds {type(tree).__name__} {tree!r:.40}, not a mapping; write `key: value` lines"
                )

    def _add_file_error(self, reason: str) -> None:
        self.broken = True
        self.errors.append(f"{self.file}: {reason}")

    def override(self, text: str) -> None:
        """Apply one `key=value`. The value is read as YAML."""
        dotted, equals, value = text.partition("=")
        text = f"{dotted}={REDACTED}" if may_hold_secret(value) else text
        text = error_messages.shortened(text)
        keys = error_messages.undotted(dotted.strip())
        if error_messages.node_at(keys) is None:
            unknown, reason = error_messages.unknown_key(keys)
            self.wrong.update(error_messages.meant_by(unknown))
            self.errors.append(f"command line ({text}): {error_messages.dotted(unknown)}: {reason}")
            return
        self.wrong.add(keys)  # until the value is read
        if not equals:
            self.errors.append(f"command line ({text}): no value; write {text}=VALUE")
            return
        try:
            parsed, _, duplicates = parse(value)
        except BadYaml as error:
            reason = f"{error}; put quotes around text with special characters"
            self.errors.append(f"command line ({text}): {error_messages.dotted(keys)}: {reason}")
            return
        if not duplicates:
            self.wrong.discard(keys)
        for inside, *_ in duplicates:
            self.errors.append(
                f"command line ({text}): {error_messages.dotted((*keys, *inside))}: given twice"
            )
        if fault := self._set(keys, parsed):
            self.errors.append(f"command line ({text}): {error_messages.dotted(keys)}: {fault}")
        else:
            self.overrides[keys] = text

    def _set(self, keys: Keys, value: Any) -> str | None:
        """Put a value at `keys`; sections that are absent are created. Returns what is wrong, if anything."""
        place: Any = self.tree
        for depth, key in enumerate(keys):
            if fault := _no_such_item(place, keys[:depth], key):
                return fault
            if isinstance(place, list):
                key = int(key)  # type: ignore[assignment]
            elif not isinstance(place, dict):
                return None  # the schema refuses what the file has there
            if depth == len(keys) - 1:
                place[key] = value
            elif isinstance(place, dict) and place.get(key) is None:
                place[key] = {}
            place = place[key]
        return None

    def resolve_paths(self) -> None:
        """Make local paths absolute, and empty sections empty mappings, which validate as all defaults."""
        self._refuse_other_keys(self.tree)
        self.tree.setdefault("deepspeed", {})
        for keys in error_messages.all_keys():
            for place, section in _sections(self.tree, keys[:-1]):
                self._resolve((*place, keys[-1]), section)

    def _refuse_other_keys(self, value: Any, place: Keys = ()) -> None:
        """Remove keys that are no text, such as 0 and `on`, with an error about each."""
        items: Iterable[tuple[Any, Any]] = enumerate(value) if isinstance(value, list) else ()
        if isinstance(value, dict):
            for key in [key for key in value if not isinstance(key, str)]:
                del value[key]
                keys = (*place, str(key))
                of_list = error_messages.node_at(keys) is not None
                reason = "unknown key; write a list" if of_list else error_messages.unknown_key(keys)[1]
                self.add_error(keys, reason)
            items = value.items()
        for key, item in items if len(place) < MAX_DEPTH else ():
            self._refuse_other_keys(item, (*place, str(key)))

    def _resolve(self, keys: Keys, section: dict[str, Any]) -> None:
        """Resolve the value of one key of a section."""
        key = keys[-1]
        if _is_section(keys) and key in section and section[key] is None:
            section[key] = {}
        elif keys == DEEPSPEED_CONFIG and key not in section:
            section[key] = os.path.abspath(Path(__file__).parent / error_messages.default(DEEPSPEED_CONFIG))
        elif isinstance(section.get(key), str) and is_local_path(keys, section[key]):
            if not section[key]:
                self.add_error(keys, "'' is empty; give a path, or leave the key out")
            section[key] = self._absolute(keys, section[key])
        elif isinstance(name := section.get(key), str) and may_be_of_hub(keys) and name:
            section[key] = self._beside(keys, name)
        elif keys == LABELLER:
            self._resolve_judges(section.get(key))
        elif keys in LISTS_OF_PATHS and isinstance(names := section.get(key), list):
            section[key] = [self._absolute(keys, n) if isinstance(n, str) and n else n for n in names]

    def _resolve_judges(self, labeller: Any) -> None:
        """Make the files of judges in {agree: [a, b]} absolute."""
        if isinstance(labeller, dict) and isinstance(names := labeller.get("agree"), list):
            labeller["agree"] = [
                self._absolute(LABELLER, name) if _is_judge(name) else name for name in names
            ]

    def _beside(self, keys: Keys, name: str) -> str:
        """The path of what has this name in the folder of the file; without it, `name` is of the hub."""
        path = self._absolute(keys, name)
        if os.path.lexists(path):
            return path
        if os.path.isdir(name):  # libraries would read it in place of the hub
            self.add_error(
                keys,
                f"{name} is a folder of the working directory, and not of {self.file.parent}, where relative "
                "paths start; write its path, or start elsewhere",
            )
        return name

    def _absolute(self, keys: Keys, path: str) -> str:
        """A path that stands at `keys`, or within the value there, as an absolute one."""
        folder = Path.cwd() if self._override_of(keys) else self.file.parent
        return os.path.abspath(folder / os.path.expanduser(path))

    def add_validation_errors(self, failure: ValidationError) -> None:
        """Add the errors of pydantic, one line for each key."""
        seen: set[Keys] = set()
        for error in failure.errors(include_url=False):
            if error["type"] == "too_short" and error["input"]:
                continue  # it counts the items that are right, and the others have errors of their own
            location = error_messages.without_forms(error["loc"])
            keys = error_messages.known_part(error["loc"])
            if error["type"] in ("extra_forbidden", "invalid_key") and keys != LABELLER:
                keys, reason = error_messages.unknown_key((*keys, str(location[len(keys)])))
                self.wrong.update(error_messages.meant_by(keys))
            else:
                self.wrong.add(keys)
                node = error_messages.node_at(keys)
                assert node is not None
                reason = error_messages.reason(error, node)
            source = self._source(keys, error["type"])
            if keys not in seen and source:  # a union reports a key once for each member
                seen.add(keys)
                index = "".join(f"[{part}]" for part in location[len(keys) :] if isinstance(part, int))
                self.errors.append(f"{source}: {error_messages.dotted(keys)}{index}: {reason}")

    def add_error(self, keys: Keys, reason: str) -> None:
        """Add an error about a value that is valid by itself."""
        self.wrong.add(keys)
        self.errors.append(f"{self._source(keys, 'value_error')}: {error_messages.dotted(keys)}: {reason}")

    def message(self) -> str:
        """All errors, one line each; at most the first MAX_ERRORS_SHOWN."""
        more = len(self.errors) - MAX_ERRORS_SHOWN
        return "\n".join(self.errors[:MAX_ERRORS_SHOWN] + ([f"and {more} more"] if more > 0 else []))

    def _source(self, keys: Keys, kind: str) -> str | None:
        """Where the value at `keys` comes from. None if the error only follows from a broken file."""
        if text := self._override_of(keys):
            return f"command line ({text})"
        if self.broken:
            return None
        source = f"{self.file}:{self.lines[keys]}" if keys in self.lines else str(self.file)
        inside = [text for path, text in self.overrides.items() if path[: len(keys)] == keys]
        return f"{source} with {' '.join(inside)}" if inside and kind == "value_error" else source

    def _override_of(self, keys: Keys) -> str | None:
        """The override that set `keys`, or a section around it."""
        covering = [text for path, text in self.overrides.items() if keys[: len(path)] == path]
        return covering[-1] if covering else None


def _without_shared_sections(tree: dict[str, Any], depth: int = 0) -> dict[str, Any]:
    """A copy in which keys with the same anchor have separate mappings. An override then changes one."""
    if depth > MAX_DEPTH:
        return tree
    return {key: _unshared(value, depth + 1) for key, value in tree.items()}


def _unshared(value: Any, depth: int) -> Any:
    if isinstance(value, list):
        return [_unshared(item, depth + 1) for item in value] if depth <= MAX_DEPTH else value
    return _without_shared_sections(value, depth) if isinstance(value, dict) else value


def _sections(tree: Any, keys: Keys, place: Keys = ()) -> Iterator[tuple[Keys, dict[str, Any]]]:
    """The mappings at `keys`, with their places: one, or each of a list of them."""
    if isinstance(tree, list):
        for number, item in enumerate(tree):
            yield from _sections(item, keys, (*place, str(number)))
    elif not isinstance(tree, dict):
        return
    elif not keys:
        yield place, tree
    else:
        yield from _sections(tree.get(keys[0]), keys[1:], (*place, keys[0]))


def _no_such_item(value: Any, keys: Keys, key: str) -> str | None:
    """What is wrong with `key` after `keys`, which stand for `value`: a number of no list, or the reverse."""
    name = error_messages.dotted(keys)
    if isinstance(value, list) and not key.isdecimal():
        return f"{name} is a list of {len(value)}; write {name}[0].{key} for the first of them"
    if isinstance(value, list) and int(key) >= len(value):
        return f"{name} is a list of {len(value)}, which [0] to [{len(value) - 1}] number; or set all of it"
    if key.isdecimal() and not isinstance(value, list):
        return f"{name} is no list; leave [{key}] out"
    return None


def _is_section(keys: Keys) -> bool:
    node = error_messages.node_at(keys)
    return (
        not keys[-1].isdecimal()
        and node is not None
        and error_messages.is_section(node)
        and not error_messages.may_be_null(keys)
    )


def is_local_path(keys: Keys, value: str) -> bool:
    """Whether the value of a key names a file or folder, not a data set or model of the hub."""
    if "://" in value:  # the schema refuses it
        return False
    if keys in (DEEPSPEED_CONFIG, ("data", "chat_template")) or keys[-1] == "from":
        return True
    if keys == LABELLER:
        return _is_judge(value)
    if keys[0] == "data" and keys[-1] == "task":  # FILE.yaml, FILE.yaml:NAME, or a pool that ships
        return any(ending in value for ending in JUDGE_FILES)
    is_file = keys[0] == "data" and names_files(value)
    return may_be_of_hub(keys) and (is_file or value.startswith((".", "/", "~")))


def may_be_of_hub(keys: Keys) -> bool:
    """Whether the value of a key may name a data set or model of the hub."""
    return keys[-2:] == ("base", "model") or (keys[0] == "data" and keys[-1] == "path")


def _is_judge(value: Any) -> bool:
    """Whether a labeller is the YAML file of an endpoint. The schema refuses a URL."""
    return isinstance(value, str) and labeller_kind(value) == "endpoint" and "://" not in value
