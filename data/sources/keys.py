"""The keys of rows and messages: their synonyms, those that carry no text, and those that are refused."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from data.sources.bad_rows import BadRow
from data.sources.cells import value_of
from data.sources.tables import Cells
from data.sources.text import collapsed, listed

# Every name on the left reads as the key on the right.
SYNONYMS = {
    "instruction": "prompt",
    "question": "prompt",
    "context": "input",
    "system_prompt": "system",
    "output": "completion",
    "response": "completion",
    "answer": "completion",
    "conversations": "messages",
    "conversation": "messages",
    "kto_tag": "label",
}
# Which row it is, and its size: nothing to train on, in rows as in messages.
_NUMBERS = """
    id ids _id uid uuid guid idx index row row_id row_idx prompt_id question_id conversation_id conv_id
    dialog_id dialogue_id thread_id message_id parent_id example_id sample_id chosen_id rejected_id user_id
    annotator_id source_id hash sha256 md5 version created created_at updated_at timestamp views avatar
    avatarurl num_turns n_turns num_tokens n_tokens token_count tokens_count length prompt_length
    prompt_tokens completion_tokens completion_ids
"""
# Where a row is from, and what it is about. A note names them: a row may hold a part of its text there.
_ORIGIN = """
    source sources data_source source_dataset dataset dataset_name origin url urls annotator labeller
    category categories topic topics subject domain subset task task_name task_type tag tags type
    language lang locale license author date time turn turns
    model models model_name chosen_model rejected_model chosen-model rejected-model model_chosen
    model_rejected generator meta metadata info comment comments note notes
"""
ORIGIN = frozenset(_ORIGIN.split())
METADATA = ORIGIN.union(_NUMBERS.split())
RM_SCORE = "rm_score"  # of the one answer of a row, in best/train.jsonl of a run
SPLIT = "split"  # such as train or held_out, in rm/rankings.jsonl of a run; see `load_rows`
OF_LIBRARIES = re.compile(r"__(index_level_\d+|null_dask_index|key|url)__")  # pandas, dask, WebDataset
REFUSED = {
    "label": "`label` rates one answer, which this form does not have",
    "labels": "`labels` (stepwise supervision): `completions` are steps, which are not ranked",
    "margin": "a margin of two answers is not read; give the score of each (`score_chosen` and "
    "`score_rejected`, or `scores`), and set rm.loss.margin to scores",
    **dict.fromkeys(
        ("tools", "functions", "tool_calls", "function_call", "tool_call_id", "parallel_tool_calls"),
        "tool calls are not supported",
    ),
    **dict.fromkeys(
        ("image", "images", "video", "videos", "audio", "audios"), "images, sound and video are not supported"
    ),
    **dict.fromkeys(
        ("reasoning_content", "reasoning", "thinking"),
        "reasoning beside the answer is not supported; write it into the answer if it is to be learned",
    ),
}
REMEDY = "rename or remove it, or name it in `ignore_columns` of this source"
OR_COLUMNS = f"{REMEDY}, or read it as another key by `columns`"  # of a row; messages have no `columns`
NO_COLUMNS: Mapping[str, str] = MappingProxyType({})
_DEPTH = 4  # at which the messages of a row lie
_EMPTY: tuple[Any, ...] = (None, "", [], {})


class Fields(dict[str, Any]):
    """A row without nulls, with the key that each synonym stands for."""

    def __init__(self, values: Mapping[str, Any], names: Mapping[str, str]) -> None:
        super().__init__(values)
        self.names = names

    def name(self, key: str) -> str:
        """The name that the row itself has for `key`."""
        return self.names.get(key, key)


def read_fields(
    row: Mapping[str, Any], ignored: Collection[str] = (), columns: Mapping[str, str] = NO_COLUMNS
) -> Fields:
    """The row without nulls, which Arrow adds, without the `ignored` keys, and without synonyms.

    Args:
        columns: the key of the formats for each name that the row has for one.

    Raises:
        BadRow: two names of one key have different values, or `columns` names one of the two.
    """
    values: dict[str, Any] = {}
    names: dict[str, str] = {}
    for name, value in _filled(row, ignored).items():
        key = key_of(name, columns)
        if key in values and not {name, names[key]}.isdisjoint(columns) and value not in _EMPTY:
            raise BadRow(
                f"`columns` reads `{key}` from one of `{names[key]}` and `{name}`, and the row has both; "
                "name the other in `ignore_columns` of this source"
            )
        if key in values and not _says_the_same(values[key], value):
            raise BadRow(f"`{names[key]}` and `{name}` say different things; {REMEDY}")
        if key not in values or values[key] in _EMPTY:
            values[key], names[key] = value, name
    return Fields(values, names)


def key_of(name: str, columns: Mapping[str, str]) -> str:
    return columns.get(name) or SYNONYMS.get(name, name)


def opened(row: Mapping[str, Any], ignored: Collection[str], columns: Mapping[str, str]) -> Mapping[str, Any]:
    """The row; if it is of a CSV or TSV file, with the numbers, lists and messages that its cells hold.

    Raises:
        BadRow: a cell seems to hold one, and cannot be read.
    """
    if not isinstance(row, Cells):
        return row
    return {
        name: cell if name in ignored else value_of(key_of(name, columns), cell) for name, cell in row.items()
    }


def names_in(value: Any, depth: int = _DEPTH) -> Iterator[str]:
    """The keys of a row and of its messages: all that `read_fields` may ignore."""
    if isinstance(value, Mapping):
        yield from value
    if depth and isinstance(value, (Mapping, list)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from names_in(item, depth - 1)


def _filled(value: Any, ignored: Collection[str], depth: int = _DEPTH) -> Any:
    """A row without nulls and `ignored` keys, also those of its messages."""
    if isinstance(value, Mapping):
        return {
            key: _filled(item, ignored, depth - 1) if depth else item
            for key, item in value.items()
            if item is not None and key not in ignored
        }
    if depth and isinstance(value, list) and any(isinstance(item, (Mapping, list)) for item in value):
        return [_filled(item, ignored, depth - 1) for item in value]
    return value


def _says_the_same(one: Any, other: Any) -> bool:
    if one in _EMPTY or other in _EMPTY:
        return True
    if isinstance(one, str) and isinstance(other, str):
        return collapsed(one) == collapsed(other)
    return bool(one == other)


def check_keys(row: Mapping[str, Any], used: Collection[str], form: str, remedy: str = REMEDY) -> None:
    """Refuse keys that say something and have no place in `form`.

    Args:
        remedy: for keys that nothing is known about.

    Raises:
        BadRow: it names the keys, the form that the row was taken for, and the remedy.
    """
    unused = unused_keys(row, used)
    if not unused:
        return
    for key in unused:
        if key in REFUSED:
            raise BadRow(f"`{key}`: {REFUSED[key]}; {REMEDY}")
    keys, have = ("keys", "have") if len(unused) > 1 else ("key", "has")
    raise BadRow(f"the {keys} {listed(unused)} {have} no place in {form}; {remedy}")


def without_empty(fields: Fields, kept: Collection[str]) -> Fields:
    """The row without the keys that have no value, but for the `kept` ones, whose lack is a fault."""
    return Fields(
        {key: value for key, value in fields.items() if key in kept or value not in _EMPTY}, fields.names
    )


def origin_of(row: Mapping[str, Any], used: Collection[str]) -> list[str]:
    """The keys that tell where a row is from, which say something and are not used."""
    return [
        key for key, value in row.items() if key.lower() in ORIGIN and key not in used and value not in _EMPTY
    ]


def unused_keys(row: Mapping[str, Any], used: Collection[str]) -> list[str]:
    """The keys of `row` that say something and are neither used nor metadata nor the row's `split`."""
    return [
        key
        for key, value in row.items()
        if key not in used
        and value not in _EMPTY
        and key.lower() not in METADATA
        and not (key == RM_SCORE and isinstance(value, float | int))
        and not (key == SPLIT and isinstance(value, str))
        and not OF_LIBRARIES.fullmatch(key)
    ]
