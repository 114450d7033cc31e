"""Read and check the text of a row: plain text, chat messages or a transcript."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from data.sources.bad_rows import BadRow, LeftOut, UnusableRow
from data.sources.keys import check_keys, origin_of
from data.sources.text import is_blank, read_string, shown

Message = dict[str, str]  # role and content; `weight` (see `_weight`) only until a row is normalised
Text = str | list[Message]

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
_OF_TOOLS = frozenset(
    ["tool", "function", "ipython", "observation", "tool_call", "tool_response", "function_call"]
)
_TURN = re.compile(r"\n\n(Human|Assistant):")
_FIRST_TURN = re.compile(r"\s*Human:")
_SPEAKER = re.compile(r"\A\s*Assistant:")


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
        return _transcript(text) if is_transcript(text) else text
    turns = [value] if isinstance(value, Mapping) else value
    if not isinstance(turns, list) or not turns:
        raise BadRow(f"`{key}` must be text or a list of messages, not {shown(value)}")
    messages = [_message(turn, key) for turn in turns]
    return [
        each for each in messages if each["role"] != "system" or not is_blank(each["content"])
    ] or messages


def _message(turn: Any, key: str) -> Message:
    if not isinstance(turn, Mapping):
        raise BadRow(f"`{key}` must be text or a list of messages; {shown(turn)} is not a message")
    role_key = "from" if "from" in turn and "role" not in turn else "role"
    content_key = "value" if "value" in turn and "content" not in turn else "content"
    role, content = turn.get(role_key), turn.get(content_key)
    if isinstance(role, str) and role in _OF_TOOLS:
        raise BadRow(
            f"`{key}` has a message with role {shown(role)}: tool calls are not supported; leave such rows "
            "out, or write the call and its result into the messages of user and assistant"
        )
    if not isinstance(role, str) or role not in _ROLES:
        raise BadRow(f"`{key}` has a message with role {shown(role)}; known roles: {', '.join(_ROLES)}")
    check_keys(turn, (role_key, content_key, "weight"), f"a message of `{key}`")
    message = {"role": _ROLES[role], "content": _content(content, f"{key}[].content")}
    return message | _weight(turn.get("weight"), message["role"], key)


def _content(content: Any, key: str) -> str:
    """The text of a message. Raises BadRow if it is no text, such as a list of parts with images."""
    parts = content if isinstance(content, list) else [content]
    kinds = [
        part["type"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("type"), str)
    ]
    others = [kind for kind in kinds if kind not in ("text", "input_text", "output_text")]
    if others:
        raise BadRow(
            f"`{key}` has a part of type {shown(others[0])}: images, sound and video are not supported; "
            "leave such rows out, or write the text alone as `content`"
        )
    if kinds:
        raise BadRow(f"`{key}` is a list of parts; write their texts as one text")
    return read_string(content, key)


def unread_in(value: Any, key: str) -> Iterator[str]:
    """The keys of the messages in a value that tell where they are from and are not read, as `key[].name`."""
    for item in value if isinstance(value, list) else [value]:
        for turn in item if isinstance(item, list) else [item]:
            if isinstance(turn, Mapping) and not turn.keys().isdisjoint(("role", "from")):
                yield from (f"{key}[].{name}" for name in origin_of(turn, ()))


def _weight(weight: Any, role: str, key: str) -> dict[str, str]:
    """{"weight": "0"} for an assistant's turn that is not learned (OpenAI's `weight: 0`), else {}."""
    if weight is None:
        return {}
    if isinstance(weight, bool) or weight not in (0, 1):
        raise BadRow(f"`{key}[].weight` must be 0 or 1, not {shown(weight)}")
    if weight and role != "assistant":
        raise BadRow(f"`{key}[].weight` is 1 on a {role} message, but only assistant messages are learned")
    return {"weight": "0"} if role == "assistant" and not weight else {}


def read_prompt(value: Any, key: str) -> Text:
    """The text or messages of a prompt; see `read_text`. A transcript may end in an empty "Assistant:"."""
    prompt = read_text(value, key)
    if isinstance(prompt, str) or prompt[-1] != {"role": "assistant", "content": ""}:
        return prompt
    return prompt[:-1]


def as_messages(text: Text, role: str) -> list[Message]:
    """The messages; a plain text as one message of `role`."""
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def last_text(text: Text) -> str:
    """What a person reads of a prompt or an answer: the text, or the content of the last message."""
    return text if isinstance(text, str) else text[-1]["content"]


def dialogue(text: Text) -> str:
    """A whole conversation for a reader who knows no chat template: each turn after the name of its speaker.

    One message of a user is its content alone.
    """
    if isinstance(text, str) or [message["role"] for message in text] == ["user"]:
        return last_text(text)
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in text)


def recorded(prompt: Text) -> dict[str, Any]:
    """A prompt in a file of answers: what a person reads, and the whole `conversation` if that is more."""
    whole = isinstance(prompt, list) and [message["role"] for message in prompt] != ["user"]
    return {"prompt": last_text(prompt), **({"conversation": without_weights(prompt)} if whole else {})}


def is_learned(message: Message) -> bool:
    """Whether SFT learns a message of a conversation."""
    return message["role"] == "assistant" and "weight" not in message


def without_weights(text: Text) -> Text:
    """The text, or its messages with only role and content."""
    if isinstance(text, str) or not any("weight" in message for message in text):
        return text
    return [{"role": message["role"], "content": message["content"]} for message in text]


def is_transcript(value: Any) -> bool:
    r"""Whether a value is a transcript of Anthropic's, with "\n\n" before its first turn or without."""
    if not isinstance(value, str):
        return False
    return value.startswith("\n\nHuman:") or (
        _FIRST_TURN.match(value) is not None and "\n\nAssistant:" in value
    )


def _transcript(text: str) -> list[Message]:
    r"""Read Anthropic's "\n\nHuman: ...\n\nAssistant: ..."; consecutive turns of one speaker are joined."""
    _, *pieces = _TURN.split(f"\n\n{text.lstrip()}")
    messages: list[Message] = []
    for speaker, content in zip(pieces[::2], pieces[1::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += f"\n\n{content.strip()}"
        else:
            messages.append({"role": role, "content": content.strip()})
    return messages


def answer_of_transcript(text: str) -> str:
    """An answer beside a transcript, without the name of its speaker and the blanks around it."""
    return _SPEAKER.sub("", text).strip()


def cut(text: Text, longest: int) -> Text:
    """Cut the middle out of a text, or of the content of messages, with more than `longest` characters."""
    if isinstance(text, str):
        half = longest // 2
        return text if len(text) <= longest else text[:half] + text[-half:]
    return [{**message, "content": str(cut(message["content"], longest))} for message in text]


def check_prompt(prompt: Text) -> None:
    """Raise UnusableRow if a prompt is empty or its roles are out of order."""
    if isinstance(prompt, str):
        if is_blank(prompt):
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
    if any(is_blank(message["content"]) for message in prompt):
        raise UnusableRow("a message of the prompt is empty")


def check_completion(completion: Text, may_be_empty: bool = False) -> None:
    """Raise UnusableRow if a completion is empty or is not one assistant turn, LeftOut if it has weight 0."""
    if isinstance(completion, str):
        empty = is_blank(completion)
    else:
        if [message["role"] for message in completion] != ["assistant"]:
            roles = ", ".join(message["role"] for message in completion)
            raise UnusableRow(f"a completion must be one assistant turn after a shared prompt, not {roles}")
        if "weight" in completion[0]:
            raise LeftOut("the answer has weight 0")
        empty = is_blank(completion[0]["content"])
    if empty and not may_be_empty:
        raise UnusableRow("a completion is empty")
