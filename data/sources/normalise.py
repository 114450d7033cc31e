"""Convert rows of all accepted formats to one form: `prompt`, and its completions.

Text stays text. A conversation becomes a list of {"role", "content"} messages.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from configs.schema import FormatName
from data.sources.bad_rows import BadRow, LeftOut, Tied, UnusableRow
from data.sources.formats import FORMATS, RATING, SAMPLED, Format, Kind, Row
from data.sources.keys import (
    NO_COLUMNS,
    OR_COLUMNS,
    REMEDY,
    Fields,
    check_keys,
    origin_of,
    read_fields,
    unused_keys,
    without_empty,
)
from data.sources.messages import (
    Text,
    answer_of_transcript,
    as_messages,
    check_completion,
    check_prompt,
    is_learned,
    is_transcript,
    read_prompt,
    unread_in,
    without_weights,
)
from data.sources.order import is_number, rated_good, scores_of_answers, without_copies
from data.sources.published import RankBy
from data.sources.text import collapsed, is_blank, listed, read_string


class Reading(NamedTuple):
    """How the rows of a source are read.

    Attributes:
        ignored: keys to leave out, of the row and of its messages.
        columns: the key of the formats for each name that rows have for one.
        format: the format of every row; None if its keys tell.
        rank_by: what UltraFeedback ranks by.
        min_rating: of demonstrations; rows with a lower `rating` are left out.
    """

    ignored: Collection[str] = ()
    columns: Mapping[str, str] = NO_COLUMNS
    format: FormatName | None = None
    rank_by: RankBy = None
    min_rating: float | None = None


BY_ITS_KEYS = Reading()


def normalise(example: Mapping[str, Any], kind: Kind, reading: Reading = BY_ITS_KEYS) -> Row:
    """The row of `read_row`."""
    return read_row(example, kind, reading)[0]


def read_row(example: Mapping[str, Any], kind: Kind, reading: Reading) -> tuple[Row, list[str]]:
    """Convert `example` to the form of its kind (see `load_rows`), without `where`.

    Returns:
        The row, and the keys of `example` and its messages that tell where they are from and are not read.

    Raises:
        BadRow: the row does not have the form of any accepted format, or says more than its format means.
        UnusableRow: it has, but there is nothing to learn from it.
        LeftOut: it says itself that there is nothing to learn.
    """
    fields = read_fields(example, reading.ignored, reading.columns)
    form = recognise(fields) if reading.format is None else _named(fields, reading.format)
    if reading.rank_by and form.key != "ultrafeedback":
        raise BadRow(f"`rank_by` is of UltraFeedback, and the row is {form.name}; leave `rank_by` out")
    fields = without_empty(fields, form.required | {"prompt", "messages"})
    origin = [fields.name(key) for key in origin_of(fields, form.used)]
    origin += [
        name for key in fields if key in form.used for name in unread_in(fields[key], fields.name(key))
    ]
    return _read(form.as_ranking(fields, reading.rank_by), form, kind, reading.min_rating), origin


def _read(fields: Fields, form: Format, kind: Kind, min_rating: float | None) -> Row:
    prompt, completions = form.read(fields)
    for name, copy in _copies(fields, form, prompt, completions):
        prompt = _opened(prompt, _system_of(copy), f"the system message of `{name}`")
    if any(is_transcript(fields.get(key)) for key in ("prompt", "messages")):
        completions = [answer_of_transcript(text) if isinstance(text, str) else text for text in completions]
    name = fields.name("system")
    system = read_string(fields.get("system", ""), name)
    prompt, completions = _same_type(_opened(prompt, system, f"`{name}`"), completions)
    if len(completions) < {"prompts": 0, "demonstrations": 1, "rankings": 2}[kind]:
        raise _missing(fields, completions, kind)
    if form.key != "text":
        check_prompt(prompt)
    elif kind == "prompts":
        raise BadRow(f"`{fields.name('text')}` is a text without a prompt")
    if kind == "prompts":
        return {"prompt": without_weights(prompt)}
    ranks = form.ranks(fields, len(completions))
    if kind == "rankings":
        scores = scores_of_answers(fields, len(completions))
        return {"prompt": without_weights(prompt), **_ranked(completions, ranks, scores, SAMPLED in fields)}
    _check_rating(fields, min_rating)
    return _demonstration(fields, form, prompt, completions[ranks.index(min(ranks))])


def recognise(fields: Fields) -> Format:
    """The first format whose keys a row has and that uses all of them.

    Raises:
        BadRow: there is none. The message names the keys that do not fit.
    """
    keys = {key for key in fields if key != "messages" or fields[key]}
    candidates: list[Format] = []
    for form in FORMATS:
        if form.required <= keys and form.fits(fields):
            if not unused_keys(fields, form.used):
                return form
            candidates.append(form)
    answers = keys & {"completion", "completions", "chosen", "rejected"}
    if answers in ({"chosen"}, {"rejected"}):
        raise BadRow("`chosen` and `rejected` must both be present")
    if not candidates:
        raise BadRow(f"no known format has these keys: {listed(map(fields.name, fields))}")
    _check_used(fields, candidates[0])
    raise AssertionError("a key is not used")


def _named(fields: Fields, key: FormatName) -> Format:
    """The format that the configuration names.

    Raises:
        BadRow: the row lacks a key of it, has other values, or has other keys.
    """
    form = next(form for form in FORMATS if form.key == key)
    if missing := sorted(form.required - fields.keys()):
        raise BadRow(f"`format` is {key}, and the row has no {listed(missing)}")
    if not form.fits(fields):
        raise BadRow(
            f"`format` is {key}, and the values of {listed(sorted(form.required))} are not of {form.name}"
        )
    _check_used(fields, form)
    return form


def _check_used(fields: Fields, form: Format) -> None:
    """Raise BadRow if the row has keys that have no place in the form."""
    names = {fields.name(key): value for key, value in fields.items() if key not in form.used}
    check_keys(names, (), form.name, OR_COLUMNS)


def _check_rating(fields: Fields, least: float | None) -> None:
    """Leave out a demonstration that is rated below `least`. One with a rating needs a `least`, and back."""
    rating = fields.get(RATING)
    if isinstance(rating, list):  # of several answers, of which the best is taken
        rating = None if least is None else max(filter(is_number, rating), default=None)
    if least is None and rating is None:
        return
    if least is None:
        raise BadRow(
            f"`{RATING}` says how good the answer is; set `min_rating` of this source to the lowest rating "
            "to learn, or name it in `ignore_columns`"
        )
    if rating is None or not is_number(rating):
        raise BadRow(f"`min_rating` is set, so each row needs a `{RATING}` that is a number")
    if rating < least:
        raise LeftOut("the answer is rated below `min_rating`")


def _demonstration(fields: Fields, form: Format, prompt: Text, completion: Text) -> Row:
    if "label" in fields and not rated_good(fields["label"]):
        raise LeftOut(f"the answer is rated bad (`{fields.name('label')}`)")
    check_completion(completion)
    row = {"prompt": without_weights(prompt), "completion": completion}
    if form.learns_earlier_turns or "history" in fields:
        learned = [position for position, message in enumerate(prompt) if is_learned(message)]  # type: ignore[arg-type]
        return row | ({"learned": learned} if learned else {})
    return row


def _ranked(completions: list[Text], ranks: list[int], scores: list[float] | None, sampled: bool) -> Row:
    """The completions, best first, with ranks and scores. A sampled one may be empty: it ended at once."""
    for completion in completions:
        check_completion(completion, may_be_empty=sampled)
    order = sorted(range(len(ranks)), key=lambda position: ranks[position])
    best_first, ascending = [completions[i] for i in order], [ranks[i] for i in order]
    if len(set(ranks)) == 1:
        raise Tied("all completions tie, so no pair is left to learn from")
    kept = without_copies([_words(text) for text in best_first], ascending)
    if len({ascending[position] for position in kept}) < 2:
        raise Tied("no two completions are left that differ by more than blanks (`chosen` equals `rejected`)")
    row: Row = {"completions": best_first, "ranks": ascending}
    return row if scores is None else row | {"scores": [scores[i] for i in order]}


def _words(text: Text) -> str:
    """The text of a completion. Blanks do not tell two texts apart, only that there are some."""
    return collapsed(text if isinstance(text, str) else text[0]["content"])


def _missing(fields: Fields, completions: list[Text], kind: Kind) -> BadRow:
    """The error for a row with too few completions for its kind."""
    if kind == "rankings" and "label" in fields:
        return BadRow(
            f"`{fields.name('label')}` rates one answer (unpaired preferences); a ranking needs "
            "two answers to a prompt"
        )
    if kind == "rankings" and "completions" in fields:
        return BadRow(f"`completions` must hold at least two, not {len(completions)}")
    if kind == "demonstrations" and "messages" in fields:
        return UnusableRow("the conversation does not end with an assistant turn")
    missing = "completion" if kind == "demonstrations" else "completions to rank"
    return BadRow(f"the keys {listed(map(fields.name, fields))} hold no {missing}")


def _opened(prompt: Text, system: str, what: str) -> Text:
    """The prompt with a system message before it.

    Args:
        what: where the message is from, for messages.

    Raises:
        BadRow: the prompt opens with another one.
    """
    if is_blank(system):
        return prompt
    messages = as_messages(prompt, "user")
    if not messages or messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    if collapsed(messages[0]["content"]) != collapsed(system):
        raise BadRow(f"{what} is not the system message that opens the conversation; {REMEDY}")
    return messages


def _system_of(text: Text) -> str:
    """The system message that opens a conversation, or ""."""
    return text[0]["content"] if not isinstance(text, str) and text[0]["role"] == "system" else ""


def _copies(fields: Fields, form: Format, prompt: Text, completions: list[Text]) -> list[tuple[str, Text]]:
    """The name and text of a `prompt` and `messages` that the form does not require.

    Raises:
        BadRow: one is no copy of what the row is read from. Only its system message may be missing there.
    """
    copies = []
    for key in ("prompt", "messages"):
        if key in form.required or not fields.get(key):
            continue
        copy, name = read_prompt(fields[key], fields.name(key)), fields.name(key)
        below = f"{copy}\n{fields['input']}" if isinstance(copy, str) and "input" in fields else copy
        if not (_is_copy(copy, prompt, completions) or _is_copy(below, prompt, completions)):
            raise BadRow(f"`{name}` says something else than {form.name} in this row; {REMEDY}")
        copies.append((name, copy))
    return copies


def _is_copy(copy: Text, prompt: Text, completions: list[Text]) -> bool:
    """Whether `copy` is the prompt, a question of it, or the conversation with one of its answers."""
    ours = _turns(prompt)
    if isinstance(copy, str):
        return ("user", collapsed(copy)) in ours
    theirs = _turns(copy)
    answers = [_turns(text, "assistant") for text in completions]
    return theirs == ours or any(theirs[: len(ours) + 1] == [*ours, *answer] for answer in answers)


def _turns(text: Text, role: str = "user") -> list[tuple[str, str]]:
    """Role and collapsed content of each turn but the system message that opens."""
    messages = as_messages(text, role)
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    return [(each["role"], collapsed(each["content"])) for each in turns]


def _same_type(prompt: Text, completions: list[Text]) -> tuple[Text, list[Text]]:
    """Convert prompt and completions to messages if any of them is a list of messages."""
    if all(isinstance(text, str) for text in (prompt, *completions)):
        return prompt, completions
    return as_messages(prompt, "user"), [as_messages(text, "assistant") for text in completions]
