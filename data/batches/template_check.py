"""A probe of chat templates: they must render every message whole, and lead up to the answer."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from configs.errors import UserError
from data.batches.encoding import rendered
from data.sources.messages import Message

# What a template might change: quotes, markup, blanks, line breaks, other scripts, length.
PROBE = (
    8
    * """It's "quoted", <b>bold</b> & {braced}: 1 < 2.

\t- A list,   with blanks
* and **marks**: é, 漢字, 🙂."""
)
REMEDY = "Set data.chat_template to a template that renders whole conversations."

_sound: set[tuple[str, tuple[str, ...]]] = set()


def check_template(tokenizer: PreTrainedTokenizerBase, roles: Sequence[str], where: str) -> None:
    """Check the chat template on a conversation of `roles`, which ends with the user, and an answer to it.

    Each template and each order of roles is tried once.

    Raises:
        UserError: it fails, leaves out or changes a message, or lacks a generation prompt.
    """
    key = str(tokenizer.chat_template), tuple(roles)
    if key in _sound:
        return
    messages: list[Message] = [
        {"role": role, "content": f"{number}. {PROBE}"}
        for number, role in enumerate((*roles, "assistant"), 1)
    ]
    conversations = [(messages[:-1], False), (messages[:-1], True), (messages, False)]
    if fault := _fault(messages, *rendered(tokenizer, conversations, where)):
        raise UserError(f"{where}: the chat template {fault}. {REMEDY}")
    _sound.add(key)


def _fault(messages: Sequence[Message], bare: str, prompt: str, whole: str) -> str | None:
    """What is wrong with the texts of a prompt, bare and with the generation prompt, and with its answer."""
    for message in messages[:-1]:
        if message["content"] not in prompt:
            return f"leaves out or changes what the {message['role']} says"
    answer = messages[-1]["content"]
    if answer not in whole:
        return "leaves out or changes the answer"
    before_answer = whole[: whole.index(answer)]
    if bare == prompt and before_answer.startswith(prompt) and before_answer[len(prompt) :].strip():
        return (
            f"has no generation prompt: with add_generation_prompt, a prompt does not end with "
            f"{before_answer[len(prompt) :]!r}, as it does before an answer"
        )
    return None
