"""The keys of YAML files beside the experiment: a judge's endpoint, and a labelled task."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from configs.judge_file import TEMPLATES, JudgeEndpoint
from configs.task_pool import Task
from docs.generators.markdown import code, prose, table

REQUIRED = "*required*"
SECTIONS: dict[str, type[BaseModel]] = {"judge": JudgeEndpoint, "task": Task}


def keys(name: str) -> str:
    """A table of the keys of the section `name`. Keys of a section in it stand below it, dotted."""
    return table(("key", "default", "what it does"), list(_rows(SECTIONS[name], "")))


def questions() -> str:
    """What a judge is asked unless its file has a template, by mode."""
    return "\n\n".join(f"`mode: {mode}`:\n\n```text\n{text}\n```" for mode, text in TEMPLATES.items())


def _rows(section: type[BaseModel], before: str) -> Iterator[list[str]]:
    for key, field in section.model_fields.items():
        if section is Task and key == "name":
            continue  # the key of the task in the file
        inner = _section_in(field.annotation)
        about = field.description or (inner.__doc__.rstrip(".") if inner and inner.__doc__ else None)
        assert about, f"{section.__name__}.{key} has no description"
        yield [code(before + key), _default(field), prose(about)]
        if inner:
            yield from _rows(inner, f"{before}{key}.")


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds, alone, in a list or optionally."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return REQUIRED
    if field.default is None:
        return "none"
    if isinstance(field.default, BaseModel):
        return ""  # its keys have theirs
    return code(field.default if _is_plain(field.default) else json.dumps(field.default))


def _is_plain(default: Any) -> bool:
    """Whether YAML reads the text as it stands."""
    return isinstance(default, str) and default == default.strip() and not default.startswith("{")
