"""Read and check the text of a row: plain text, chat messages or a transcript."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from data.sources.reading import BadRow, UnusableRow

Message = dict[str, str]
Text = str | list[Message]

_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
SHORT = reprlib.Repr()  # it ends, however deep or long a value is
SHORT.maxstring = SHORT.maxother = 70
_TURN = re.compile(r"\n\n(Human|Assistant):")


def read_text(value: Any, key: str) -> Text:
    """Return `value`, the value of `key`, as text or as messages.

    Accepted are text, a message or a list of them ({"role", "content"}, or ShareGPT's {"from", "value"}), and
    Anthropic HH's transcripts, which become messages.

    Raises:
        BadRow: it is none of these.
        UnusableRow: it holds a NUL character.
    """
    if isinstance(value, str):
        text = read_string(value, key)
        return _transcript(text) if text.startswith("\n\nHuman:") else text
    turns = [value] if isinstance(value, Mapping) else value
    if not isinstance(turns, list) or not turns:
        raise BadRow(f"`{key}` must be text or a list of messages, not {shown(value)}")
    messages = [_message(turn, key) for turn in turns]
    return [message for message in messages if message != {"role": "system", "content": ""}] or messages


def _message(turn: Any, key: str) -> Message:
    if not isinstance(turn, Mapping):
        raise BadRow(f"`{key}` must be text or a list of messages; {shown(turn)} is not a message")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(role, str) or role not in _ROLES:
        raise BadRow(f"`{key}` has a message with role {shown(role)}; known roles: {', '.join(_ROLES)}")
    if turn.get("tool_calls"):
        raise BadRow(f"`{key}` has a message with tool calls, which are not supported")
    return {"role": _ROLES[role], "content": read_string(content, f"{key}[].content")}


def read_string(value: Any, key: str) -> str:
    """Return `value` if it is text that a tokenizer can read.

    Raises:
        BadRow: it is not text, or holds half of a surrogate pair.
        UnusableRow: it holds a NUL character.
    """
    if not isinstance(value, str):
        raise BadRow(f"`{key}` must be text, not {shown(value)}")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise BadRow(f"`{key}` holds half of a surrogate pair, which no tokenizer can read")
    if "\0" in value:
        raise UnusableRow(f"`{key}` holds a NUL character, as damaged files do")
    return value


def shown(value: Any) -> str:
    """A short form of `value` for error messages."""
    text = SHORT.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def listed(keys: Iterable[str]) -> str:
    """The first keys for error messages, without control characters."""
    first = list(islice(keys, 13))
    names = ", ".join(f"`{shown(key)[1:-1]}`" for key in first[:12]) or "none"
    return names + (", ..." if len(first) > 12 else "")


def _transcript(text: str) -> list[Message]:
    r"""Read Anthropic's "\n\nHuman: ...\n\nAssistant: ..."; consecutive turns of one speaker are joined."""
    _, *pieces = _TURN.split(text)
    messages: list[Message] = []
    for speaker, content in zip(pieces[::2], pieces[1::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += f"\n\n{content.strip()}"
        else:
            messages.append({"role": role, "content": content.strip()})
    return messages


def cut(text: Text, longest: int) -> Text:
    """Cut the middle out of a text, or of the content of messages, with more than `longest` characters."""
    if isinstance(text, str):
        half = longest // 2
        return text if len(text) <= longest else text[:half] + text[-half:]
    return [{**message, "content": str(cut(message["content"], longest))} for message in text]


def check_prompt(prompt: Text) -> None:
    """Raise UnusableRow if a prompt is empty or its roles are out of order."""
    if isinstance(prompt, str):
        if not prompt.strip():
            raise UnusableRow("the prompt is empty")
        return
    roles = [message["role"] for message in prompt]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns:
        raise UnusableRow("the prompt is empty")
    if turns != [("user", "assistant")[turn % 2] for turn in range(len(turns))] or turns[-1] != "user":
        raise UnusableRow(
            f"roles out of order ({', '.join(roles)}): a prompt is an optional system message, then user and "
            "assistant in turn, and ends with user"
        )
    if not all(message["content"].strip() for message in prompt):
        raise UnusableRow("a message of the prompt is empty")


def check_completion(completion: Text) -> None:
    """Raise UnusableRow if a completion is empty or is not one assistant turn."""
    if isinstance(completion, str):
        empty = not completion.strip()
    else:
        if [message["role"] for message in completion] != ["assistant"]:
            roles = ", ".join(message["role"] for message in completion)
            raise UnusableRow(f"a completion must be one assistant turn after a shared prompt, not {roles}")
        empty = not completion[0]["content"].strip()
    if empty:
        raise UnusableRow("a completion is empty")
