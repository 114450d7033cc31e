"""The keys of rows and messages: their synonyms, those that carry no text, and those that are refused."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
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
# Where a row is from, and who wrote it: nothing to train on, in rows as in messages.
_METADATA = """
    id ids _id uid uuid guid idx index row row_id row_idx prompt_id question_id conversation_id conv_id
    dialog_id dialogue_id thread_id message_id parent_id example_id sample_id chosen_id rejected_id user_id
    annotator annotator_id labeller hash sha256 md5
    source sources data_source source_dataset source_id dataset dataset_name origin url urls
    category categories topic topics subject domain subset task task_name task_type tag tags type
    language lang locale license author version created created_at updated_at date time timestamp
    model models model_name chosen_model rejected_model chosen-model rejected-model model_chosen
    model_rejected generator views avatar avatarurl
    num_turns n_turns turn turns num_tokens n_tokens token_count tokens_count length prompt_length
    prompt_tokens completion_tokens completion_ids meta metadata info comment comments note notes
"""
METADATA = frozenset(_METADATA.split())
RM_SCORE = "rm_score"  # of the one answer of a row, in best/train.jsonl of a run
SPLIT = "split"  # such as train or held_out, in rm/rankings.jsonl of a run; see `load_rows`
OF_LIBRARIES = re.compile(r"__(index_level_\d+|null_dask_index|key|url)__")  # pandas, dask, WebDataset
REFUSED = {
    "label": "`label` rates one answer, which this form does not have",
    "labels": "`labels` (stepwise supervision): `completions` are steps, which are not ranked",
    "margin": "margins between scores are not supported",
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
NO_COLUMNS: Mapping[str, str] = MappingProxyType({})
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
        key = columns.get(name) or SYNONYMS.get(name, name)
        if isinstance(row, Cells):
            value = value_of(key, value)
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


def _filled(value: Any, ignored: Collection[str], depth: int = 4) -> Any:
    """A row without nulls and `ignored` keys, also those of its messages, which lie at most `depth` deep."""
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


def check_keys(row: Mapping[str, Any], used: Collection[str], form: str) -> None:
    """Refuse keys that say something and have no place in `form`.

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
    raise BadRow(f"the {keys} {listed(unused)} {have} no place in {form}; {REMEDY}")


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
