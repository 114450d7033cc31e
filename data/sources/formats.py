"""Bring the formats that people have their data in to one form: `prompt`, and its completions.

Read are TRL's formats (prompt-completion, `messages`, prompt-only, preferences with an explicit or implicit
prompt; text or role/content messages), K-wise rankings, Anthropic HH transcripts, Alpaca and ShareGPT.
Text stays text; a conversation becomes a list of {"role", "content"} messages.
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
    "first, with `ranks` or `scores` where some tie. Prompts alone are ranked by `rm.rankings.labeller`",
    "prompts": "`prompt`; `messages`; any format of demonstrations or rankings, whose prompt is taken",
}
UNUSABLE_SHARE = 0.01  # published data has a few such rows (Anthropic HH 0.25 %); many mean a mistake
SHOWN = 5


def load_rows(source: Source, kind: Kind, note: Callable[[str], None]) -> list[Row]:
    """Return the rows of `source` as demonstrations, rankings or prompts.

    demonstrations: {"prompt", "completion", "where"}
    rankings: {"prompt", "completions", "ranks", "where"}: completions best first, equal ranks tie
    prompts: {"prompt", "where"}

    A prompt and its completions are either all text or all lists of messages; a completion is one assistant
    turn. `where` names the row in messages. A row that cannot be read is an error. Rows that read but teach
    nothing (UnusableRow) are left out and told to `note`; they are an error when more than 1 % are.

    Raises UserError, with the places and faults of the first five bad rows.
    """
    rows: list[Row] = []
    malformed: list[str] = []
    unusable: list[str] = []
    for place, example in read(source):
        try:
            if isinstance(example, BadRow):
                raise example
            rows.append({**normalise(example, kind), "where": f"{describe(source)}, {place}"})
        except UnusableRow as fault:
            unusable.append(f"{place}: {fault}")
        except BadRow as fault:
            malformed.append(f"{place}: {fault}")
    total = len(rows) + len(malformed) + len(unusable)
    if total == 0:
        raise UserError(f"{describe(source)}: it holds no rows. Point `data` at a source that has some.")
    if malformed or len(unusable) > UNUSABLE_SHARE * total:
        bad = malformed + unusable
        raise UserError(
            f"{describe(source)}: {len(bad)} of {total} rows cannot serve as {kind}.\n{_listed(bad)}\n"
            f"Correct or remove them. Accepted as {kind}: {ACCEPTED[kind]}."
        )
    if unusable:
        note(f"{describe(source)}: left out {len(unusable)} of {total} rows.\n{_listed(unusable)}")
    return rows


def _listed(faults: Sequence[str]) -> str:
    lines = [f"  {fault}" for fault in faults[:SHOWN]]
    if len(faults) > SHOWN:
        lines.append(f"  and {len(faults) - SHOWN} more")
    return "\n".join(lines)


def normalise(example: Mapping[str, Any], kind: Kind) -> Row:
    """Return `example` in the one form of its kind (see `load_rows`), without `where`.

    Raises BadRow, or its subclass UnusableRow.
    """
    given = {key: value for key, value in example.items() if value is not None}  # Arrow fills in nulls
    if kind != "prompts":
        _check_unlabelled(given)
    row = _alpaca(given) if "instruction" in given else given
    prompt, completions = _alike(*_prompt_and_completions(row))
    needed = {"prompts": 0, "demonstrations": 1, "rankings": 2}[kind]
    if len(completions) < needed:
        raise _missing(given, completions, kind)
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
        raise UnusableRow("all completions tie, so there is no pair to learn from")
    if all(completion == used[0] for completion in used):
        raise UnusableRow("all completions are the same (`chosen` equals `rejected`)")
    return {"prompt": prompt, "completions": used, "ranks": ranks}


def _check_unlabelled(row: Mapping[str, Any]) -> None:
    """Completions that TRL's other formats call good or bad are neither demonstrations nor ranked."""
    if isinstance(row.get("label"), bool):
        raise BadRow("`label` (unpaired preferences): keep the rows where it is true, without the key")
    if isinstance(row.get("labels"), list):
        raise BadRow("`labels` (stepwise supervision): `completions` are steps, which are not ranked")


def _missing(given: Mapping[str, Any], completions: list[Text], kind: Kind) -> BadRow:
    if kind == "rankings" and "completions" in given:
        return BadRow(f"`completions` must hold at least two, not {len(completions)}")
    if kind == "rankings" and ("chosen" in given) != ("rejected" in given):
        return BadRow("`chosen` and `rejected` must both be there")
    whole = {"chosen"} if kind == "rankings" else {"chosen", "messages", "conversations"}
    if whole & set(given):
        return UnusableRow("the conversation does not end with an assistant turn")
    what = "completion" if kind == "demonstrations" else "completions to rank"
    return BadRow(f"the keys {listed(given)} hold no {what}")


def _alpaca(row: dict[str, Any]) -> dict[str, Any]:
    """Make Alpaca's keys, with LLaMA-Factory's `system` and `history`, into `prompt` and `completion`."""
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
    """Find the prompt and all completions, best first, whatever the format."""
    context = next((key for key in ("prompt", "conversations", "messages") if key in row), None)
    if "completions" in row:
        if context is None or not isinstance(row["completions"], list):
            raise BadRow("`completions` must be a list, beside a `prompt`")
        return _read_prompt(row, context), [read_text(each, "completions") for each in row["completions"]]
    if "chosen" in row and "rejected" in row:
        return _preference(row, context)
    if "prompt" in row:
        completions = [read_text(row["completion"], "completion")] if "completion" in row else []
        return _read_prompt(row, "prompt"), completions
    if context is not None:
        messages = read_text(row[context], context)
        if isinstance(messages, str):
            raise BadRow(f"`{context}` must be a list of messages, not text")
        return _parted(messages)
    raise BadRow(f"no known format has these keys: {listed(row)}")


def _preference(row: Mapping[str, Any], context: str | None) -> tuple[Text, list[Text]]:
    chosen, rejected = read_text(row["chosen"], "chosen"), read_text(row["rejected"], "rejected")
    if context is not None and not (_begins_earlier(chosen) or _begins_earlier(rejected)):
        return _read_prompt(row, context), [chosen, rejected]
    if isinstance(chosen, str) and isinstance(rejected, str):
        if not chosen or not rejected:
            raise UnusableRow("`chosen` or `rejected` is empty")
        if chosen[0] != rejected[0]:
            raise UnusableRow("`chosen` and `rejected` share no prompt, and there is no `prompt`")
        parts = extract_prompt({"chosen": chosen, "rejected": rejected})
        return parts["prompt"], [parts["chosen"], parts["rejected"]]
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise BadRow("`chosen` and `rejected` must both be text or both be messages")
    prompt, completions = _parted(chosen)
    # A side that answers another prompt goes in whole, and is found by the check on completions.
    other, answers = _parted(rejected)
    return prompt, [*completions, *(answers if other == prompt else [rejected])]


def _begins_earlier(side: Text) -> bool:
    """Whether a completion holds more than the answer: the conversation before it."""
    return not isinstance(side, str) and side[0]["role"] != "assistant"


def _read_prompt(row: Mapping[str, Any], key: str) -> Text:
    prompt = read_text(row[key], key)
    if isinstance(prompt, str) or prompt[-1] != {"role": "assistant", "content": ""}:
        return prompt
    return prompt[:-1]  # a transcript that ends in "Assistant:"


def _parted(messages: list[Message]) -> tuple[Text, list[Text]]:
    """Part a conversation into what was said before, and its last assistant turn if it ends with one."""
    if messages[-1]["role"] == "assistant":
        return messages[:-1], [messages[-1:]]
    return messages, []


def _alike(prompt: Text, completions: list[Text]) -> tuple[Text, list[Text]]:
    """Make the prompt and its completions messages when any of them is."""
    if all(isinstance(each, str) for each in (prompt, *completions)):
        return prompt, completions
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return asked, [
        [{"role": "assistant", "content": each}] if isinstance(each, str) else each for each in completions
    ]


def _ranks(row: Mapping[str, Any], count: int) -> list[int]:
    """The rank of each completion, 0 best: as given, or from `scores`, or all different."""
    key = "ranks" if "ranks" in row else "scores" if "scores" in row and "completions" in row else None
    if key is None:
        return list(range(count))
    values = row[key]
    if not isinstance(values, list) or not all(_is_number(value) for value in values):
        raise BadRow(f"`{key}` must be a list of numbers, not {shown(values)}")
    if len(values) != count:
        raise BadRow(f"`{key}` has {len(values)} entries for {count} completions")
    badness = values if key == "ranks" else [-value for value in values]
    if badness != sorted(badness):
        order = "ascend, 0 for the best" if key == "ranks" else "descend, the highest for the best"
        raise BadRow(f"`{key}` must {order}: completions stand best first, not {shown(values)}")
    distinct = sorted(set(badness))
    return [distinct.index(value) for value in badness]


def _is_number(value: Any) -> bool:
    if isinstance(value, int):  # of any size, and so not for math.isfinite
        return not isinstance(value, bool)
    return isinstance(value, float) and math.isfinite(value)
