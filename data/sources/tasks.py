"""Rows of a labelled task: their columns, the text of their answer, and what tells them apart.

`data/batches/wording.py` words them, once it is known which of them are trained on.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from configs.errors import UserError
from configs.schema import Source
from configs.task_file import read_task
from configs.task_pool import ANSWER, OPTIONS, Task, label_name
from data.sources.bad_rows import BadRow, LeftOut, UnusableRow
from data.sources.keys import REMEDY, check_keys, origin_of
from data.sources.text import collapsed, is_blank, listed, read_string, shown

Row = dict[str, Any]


@dataclass(frozen=True)
class Labelled:
    """One row of a task, not worded yet.

    Attributes:
        values: what templates see, by name: columns, `options`, and `answer`.
        reason: the reason before the answer, or "".
    """

    task: Task
    values: Mapping[str, Any]
    reason: str = ""

    @property
    def answer(self) -> str:
        return str(self.values[ANSWER])

    def answering(self, answer: str) -> Mapping[str, Any]:
        """The values of the row if `answer`, one of its options, were right."""
        options = self.task.options
        label: Any = answer
        if isinstance(options, dict):
            label = next(name for name, text in options.items() if text == answer)
        elif options and not isinstance(options, str) and isinstance(self.values[self.task.label], int):
            label = options.index(answer)
        return {**self.values, self.task.label: label, ANSWER: answer}


def check_trainable(source: Source, key: str) -> None:
    """Raise UserError if the task of a source cannot be read, or is held out from all training."""
    if source.task and read_task(source.task, f"{key}.task").held_out == "all":
        raise UserError(
            f"{key}.task: {source.task}: this task is held out (`held_out: all`), so no stage may train on "
            "it. Leave it out here, or `held_out` out there. `tristage evaluate --tasks` measures such tasks."
        )


def labelled_row(example: Mapping[str, Any], task: Task, ignored: Collection[str] = ()) -> Row:
    """A row of a task before it is worded: {"prompt": "", "completion", "key", "labelled"}.

    `key` is what tells its input apart: the columns that prompts show. `completion` says what its answer is.

    Raises:
        BadRow: a column is missing, has no place in the templates, or holds an unknown label.
        UnusableRow: its answer is empty.
        LeftOut: `ignore_labels` names its label.
    """
    values = _columns(example, task, ignored)
    reason = _reason(values, task)
    label = values[task.label]
    if label_name(label) in task.ignore_labels:
        raise LeftOut(f"`{task.label}` is {shown(label)}, which `ignore_labels` names")
    options = _options(values, task)
    answer = _answer(label, options, task)
    if is_blank(answer):
        raise UnusableRow(f"`{task.label}` is empty")
    shown_options = {OPTIONS: options} if task.options is not None else {}
    labelled = Labelled(task, {**values, **shown_options, ANSWER: answer}, reason)
    said = f"{task.name}: {answer}"  # two tasks may have the same answer about one text
    return {"prompt": "", "completion": said, "key": _key(values, task), "labelled": labelled}


def origin_of_labelled(example: Mapping[str, Any], task: Task, ignored: Collection[str] = ()) -> list[str]:
    """The columns that tell where a row is from, which no template reads."""
    return origin_of(_named(example, task, ignored), _read(task))


def _read(task: Task) -> frozenset[str]:
    """The columns that templates read, and the reason before the answer."""
    return task.columns | ({task.chain_of_thought.column} if task.chain_of_thought else set())


def _named(example: Mapping[str, Any], task: Task, ignored: Collection[str]) -> Row:
    """The columns of a row that have a value, under the names that the templates use."""
    names = {own: name for name, own in (task.source.columns if task.source else {}).items()}
    ignored = {*ignored, *(task.source.ignore_columns if task.source else ())}
    values: Row = {}
    for own, value in example.items():
        if value is None or own in ignored:
            continue
        name = names.get(own, own)
        if name in values:
            raise BadRow(f"two columns are read as `{name}`; leave one out of `columns`")
        values[name] = value
    return values


def _columns(example: Mapping[str, Any], task: Task, ignored: Collection[str]) -> Row:
    """The columns of a row that templates read, under the names that they use."""
    values, read = _named(example, task, ignored), _read(task)
    renamed = f"{REMEDY}, or read it as another one by `columns` of the task's `source`"
    check_keys(values, read, f"the templates of {task.name}", renamed)
    own = task.source.columns if task.source else {}
    values = dict.fromkeys(task.optional, "") | {
        name: _readable(value, own.get(name, name)) for name, value in values.items() if name in read
    }
    if missing := sorted(task.columns - values.keys()):
        raise BadRow(
            f"it has no {listed(missing)}, which the templates of {task.name} read; name the row's own "
            "column in `columns` of the task's `source`"
        )
    if ANSWER in values and task.label != ANSWER:
        raise BadRow(
            f"templates read the text of `{task.label}` as `{ANSWER}`, and the row has an `{ANSWER}`, too"
        )
    if all(isinstance(values[name], str) and is_blank(values[name]) for name in task.inputs):
        raise UnusableRow(f"{listed(sorted(task.inputs))} show nothing")
    return values


def _readable(value: Any, own: str) -> Any:
    """A value that templates can show: another process renders them, and gets it as JSON."""
    if isinstance(value, str):
        return read_string(value, own)
    try:
        json.dumps(value)
    except (TypeError, RecursionError):  # dates, decimals and bytes, which Parquet has
        raise BadRow(
            f"`{own}` is no text, number, list or object: {shown(value)}; write it as text"
        ) from None
    return value


def _reason(values: Row, task: Task) -> str:
    if task.chain_of_thought is None:
        return ""
    reason = values.pop(task.chain_of_thought.column, "")
    return read_string(reason, task.chain_of_thought.column).strip()


def _options(values: Mapping[str, Any], task: Task) -> list[str]:
    """The texts to choose from."""
    if not isinstance(task.options, str):
        return list(task.choices)
    texts = values[task.options]
    if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(text, str) for text in texts):
        raise BadRow(
            f"`{task.options}` must be a list of two or more texts to choose from, not {shown(texts)}"
        )
    if len(set(texts)) < len(texts) or any(map(is_blank, texts)):
        raise BadRow(f"`{task.options}` has a text twice, or an empty one: {shown(texts)}")
    return list(texts)


def _answer(label: Any, options: list[str], task: Task) -> str:
    """The text of a label."""
    if task.options is None:
        return read_string(label, task.label)
    name = label_name(label)
    if isinstance(task.options, dict):
        if name in task.options:
            return task.options[name]
        known = list(task.options)
    else:
        if name in options:
            return str(name)
        known = [*map(str, range(len(options))), *options]
        if name in known:
            return options[known.index(name)]
    raise BadRow(
        f"`{task.label}` is {shown(label)}, and {task.name} knows the labels {listed(known)}; add it to "
        "`options`, or to `ignore_labels`"
    )


def _key(values: Mapping[str, Any], task: Task) -> str:
    shown_values = {name: values.get(name, "") for name in sorted(task.inputs)}
    if len(shown_values) == 1 and isinstance(text := next(iter(shown_values.values())), str):
        return collapsed(text)
    return collapsed(json.dumps(shown_values, ensure_ascii=False, sort_keys=True))
