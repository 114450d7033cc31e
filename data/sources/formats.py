"""Convert rows of all accepted formats to one form: `prompt`, and its completions.

Accepted are TRL's formats (prompt-completion, `messages`, prompt-only, preferences with an explicit or
implicit prompt; text or role/content messages), K-wise rankings, Anthropic HH transcripts, Alpaca and
ShareGPT. Text stays text. A conversation becomes a list of {"role", "content"} messages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from trl.data_utils import extract_prompt

from configs.errors import UserError
from configs.schema import Source
from data.sources.messages import (
    Message,
    Text,
    check_completion,
    check_prompt,
    listed,
    read_string,
    read_text,
    shown,
)
from data.sources.reading import BadRow, UnusableRow, describe, read

Kind = Literal["demonstrations", "rankings", "prompts"]
Row = dict[str, Any]  # prompt: Text; completion: Text, or completions: list[Text] and ranks: list[int]; where

ACCEPTED: dict[Kind, str] = {
    "demonstrations": "`prompt` and `completion`; `messages`; `instruction`, `input` and `output` (Alpaca); "
    "`conversations` (ShareGPT); any format of rankings, whose best completion is taken",
    "rankings": "`prompt`, `chosen` and `rejected`; `chosen` and `rejected` that begin alike (Anthropic HH's "
    "transcripts too); `conversations`, `chosen` and `rejected` (ShareGPT); `prompt` and `completions`, best "
    "first, with `ranks` or `scores` if some tie. `rm.rankings.labeller` ranks rows that have only prompts",
    "prompts": "`prompt`; `messages`; any format of demonstrations or rankings, whose prompt is taken",
}
MAX_UNUSABLE_SHARE = 0.01  # published data has a few such rows (Anthropic HH 0.25 %); more mean a mistake
MAX_ROWS_SHOWN = 5


def load_rows(source: Source, kind: Kind, note: Callable[[str], None]) -> list[Row]:
    """Return the rows of `source` as demonstrations, rankings or prompts.

    demonstrations: {"prompt", "completion", "where"}
    rankings: {"prompt", "completions", "ranks", "where"}: completions best first, equal ranks tie
    prompts: {"prompt", "where"}

    A prompt and its completions are either all text or all lists of messages. A completion is one assistant
    turn. `where` names the row in messages. Rows without anything to learn (UnusableRow) are left out, and
    `note` is called with a line about them.

    Raises:
        UserError: there are no rows, a row cannot be read, or over 1 % are unusable. The message has the
            places and reasons of the first five.
    """
    rows: list[Row] = []
    unreadable: list[str] = []
    unusable: list[str] = []
    for place, example in read(source):
        try:
            if isinstance(example, BadRow):
                raise example
            rows.append({**normalise(example, kind), "where": f"{describe(source)}, {place}"})
        except UnusableRow as fault:
            unusable.append(f"{place}: {fault}")
        except BadRow as fault:
            unreadable.append(f"{place}: {fault}")
    total = len(rows) + len(unreadable) + len(unusable)
    if total == 0:
        raise UserError(f"{describe(source)}: it holds no rows. Point `data` at a source that has some.")
    if unreadable or len(unusable) > MAX_UNUSABLE_SHARE * total:
        bad = unreadable + unusable
        raise UserError(
            f"{describe(source)}: {len(bad)} of {total} rows cannot serve as {kind}.\n{_listed(bad)}\n"
            f"Correct or remove them. Accepted as {kind}: {ACCEPTED[kind]}."
        )
    if unusable:
        note(f"{describe(source)}: left out {len(unusable)} of {total} rows.\n{_listed(unusable)}")
    return rows


def _listed(faults: Sequence[str]) -> str:
    lines = [f"  {fault}" for fault in faults[:MAX_ROWS_SHOWN]]
    if len(faults) > MAX_ROWS_SHOWN:
        lines.append(f"  and {len(faults) - MAX_ROWS_SHOWN} more")
    return "\n".join(lines)


def normalise(example: Mapping[str, Any], kind: Kind) -> Row:
    """Convert `example` to the form of its kind (see `load_rows`), without `where`.

    Raises:
        BadRow: the row does not have the form of any accepted format.
        UnusableRow: it has, but there is nothing to learn from it.
    """
    fields = {key: value for key, value in example.items() if value is not None}  # Arrow adds nulls
    if kind != "prompts":
        _check_unlabelled(fields)
    row = _alpaca(fields) if "instruction" in fields else fields
    prompt, completions = _same_type(*_prompt_and_completions(row))
    needed = {"prompts": 0, "demonstrations": 1, "rankings": 2}[kind]
    if len(completions) < needed:
        raise _missing(fields, completions, kind)
    used = completions if kind == "rankings" else completions[:needed]
    check_prompt(prompt)
    for completion in used:
        check_completion(completion)
    if kind == "prompts":
        return {"prompt": prompt}
    if kind == "demonstrations":
        return {"prompt": prompt, "completion": used[0]}
    ranks = _ranks(row, len(used))
    if len(set(ranks)) == 1:
        raise UnusableRow("all completions tie, so no pair is left to learn from")
    if all(completion == used[0] for completion in used):
        raise UnusableRow("all completions are the same (`chosen` equals `rejected`)")
    return {"prompt": prompt, "completions": used, "ranks": ranks}


def _check_unlabelled(row: Mapping[str, Any]) -> None:
    """Refuse TRL's formats that label single completions: these are neither demonstrations nor rankings."""
    if isinstance(row.get("label"), bool):
        raise BadRow("`label` (unpaired preferences): keep the rows where it is true, and remove the key")
    if isinstance(row.get("labels"), list):
        raise BadRow("`labels` (stepwise supervision): `completions` are steps, which are not ranked")


def _missing(fields: Mapping[str, Any], completions: list[Text], kind: Kind) -> BadRow:
    """The error for a row with too few completions for its kind."""
    if kind == "rankings" and "completions" in fields:
        return BadRow(f"`completions` must hold at least two, not {len(completions)}")
    if kind == "rankings" and ("chosen" in fields) != ("rejected" in fields):
        return BadRow("`chosen` and `rejected` must both be present")
    conversations = {"chosen"} if kind == "rankings" else {"chosen", "messages", "conversations"}
    if conversations & set(fields):
        return UnusableRow("the conversation does not end with an assistant turn")
    missing = "completion" if kind == "demonstrations" else "completions to rank"
    return BadRow(f"the keys {listed(fields)} hold no {missing}")


def _alpaca(row: dict[str, Any]) -> dict[str, Any]:
    """Convert Alpaca's keys, and LLaMA-Factory's `system` and `history`, to `prompt` and `completion`."""
    if "output" not in row and "chosen" not in row:
        raise BadRow("`instruction` without `output` (or `chosen` and `rejected`)")
    question = read_string(row["instruction"], "instruction")
    if extra := read_string(row.get("input", ""), "input"):
        question = f"{question}\n{extra}"
    earlier: list[Message] = []
    if system := read_string(row.get("system", ""), "system"):
        earlier.append({"role": "system", "content": system})
    history = row.get("history", [])
    if not isinstance(history, list) or not all(
        isinstance(turn, list) and len(turn) == 2 for turn in history
    ):
        raise BadRow("`history` must be a list of [question, answer] pairs")
    for turn in history:
        earlier.append({"role": "user", "content": turn[0]})
        earlier.append({"role": "assistant", "content": turn[1]})
    prompt = [*earlier, {"role": "user", "content": question}] if earlier else question
    if "chosen" in row:
        return {"prompt": prompt, "chosen": row["chosen"], "rejected": row.get("rejected")}
    return {"prompt": prompt, "completion": row["output"]}


def _prompt_and_completions(row: Mapping[str, Any]) -> tuple[Text, list[Text]]:
    """Return the prompt and all completions, best first, of a row of any format."""
    context = next((key for key in ("prompt", "conversations", "messages") if key in row), None)
    if "completions" in row:
        if context is None or not isinstance(row["completions"], list):
            raise BadRow("`completions` must be a list, and the row must have a `prompt`")
        return _read_prompt(row, context), [read_text(text, "completions") for text in row["completions"]]
    if "chosen" in row and "rejected" in row:
        return _preference(row, context)
    if "prompt" in row:
        completions = [read_text(row["completion"], "completion")] if "completion" in row else []
        return _read_prompt(row, "prompt"), completions
    if context is not None:
        messages = read_text(row[context], context)
        if isinstance(messages, str):
            raise BadRow(f"`{context}` must be a list of messages, not text")
        return _split_last_turn(messages)
    raise BadRow(f"no known format has these keys: {listed(row)}")


def _preference(row: Mapping[str, Any], context: str | None) -> tuple[Text, list[Text]]:
    chosen, rejected = read_text(row["chosen"], "chosen"), read_text(row["rejected"], "rejected")
    if context is not None and not (_includes_prompt(chosen) or _includes_prompt(rejected)):
        return _read_prompt(row, context), [chosen, rejected]
    if isinstance(chosen, str) and isinstance(rejected, str):
        if not chosen or not rejected:
            raise UnusableRow("`chosen` or `rejected` is empty")
        if chosen[0] != rejected[0]:
            raise UnusableRow("`chosen` and `rejected` share no prompt, and the row has no `prompt`")
        parts = extract_prompt({"chosen": chosen, "rejected": rejected})
        return parts["prompt"], [parts["chosen"], parts["rejected"]]
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise BadRow("`chosen` and `rejected` must both be text or both be messages")
    prompt, completions = _split_last_turn(chosen)
    # If `rejected` answers another prompt, it stays whole, and check_completion refuses it.
    rejected_prompt, answers = _split_last_turn(rejected)
    return prompt, [*completions, *(answers if rejected_prompt == prompt else [rejected])]


def _includes_prompt(completion: Text) -> bool:
    """Whether a completion holds the conversation before the answer, too."""
    return not isinstance(completion, str) and completion[0]["role"] != "assistant"


def _read_prompt(row: Mapping[str, Any], key: str) -> Text:
    prompt = read_text(row[key], key)
    if isinstance(prompt, str) or prompt[-1] != {"role": "assistant", "content": ""}:
        return prompt
    return prompt[:-1]  # a transcript that ends in "Assistant:"


def _split_last_turn(messages: list[Message]) -> tuple[Text, list[Text]]:
    """Split a conversation into the prompt and its last assistant turn, if it ends with one."""
    if messages[-1]["role"] == "assistant":
        return messages[:-1], [messages[-1:]]
    return messages, []


def _same_type(prompt: Text, completions: list[Text]) -> tuple[Text, list[Text]]:
    """Convert prompt and completions to messages if any of them is a list of messages."""
    if all(isinstance(text, str) for text in (prompt, *completions)):
        return prompt, completions
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return messages, [
        [{"role": "assistant", "content": text}] if isinstance(text, str) else text for text in completions
    ]


def _ranks(row: Mapping[str, Any], count: int) -> list[int]:
    """The rank of each completion, 0 for the best: from `ranks`, else from `scores`, else all different."""
    key = "ranks" if "ranks" in row else "scores" if "scores" in row and "completions" in row else None
    if key is None:
        return list(range(count))
    values = row[key]
    if not isinstance(values, list) or not all(_is_number(value) for value in values):
        raise BadRow(f"`{key}` must be a list of numbers, not {shown(values)}")
    if len(values) != count:
        raise BadRow(f"`{key}` has {len(values)} entries for {count} completions")
    ascending = values if key == "ranks" else [-value for value in values]
    if ascending != sorted(ascending):
        order = "ascend, 0 for the best" if key == "ranks" else "descend, the highest for the best"
        raise BadRow(f"`{key}` must {order}, as the best completion stands first; it is {shown(values)}")
    distinct = sorted(set(ascending))
    return [distinct.index(value) for value in ascending]


def _is_number(value: Any) -> bool:
    if isinstance(value, int):  # math.isfinite fails on very large ones
        return not isinstance(value, bool)
    return isinstance(value, float) and math.isfinite(value)
