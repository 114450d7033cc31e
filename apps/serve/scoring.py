"""The answers that a request wants scored, in its two forms."""

from __future__ import annotations

from collections.abc import Sequence

from apps.answers.prompts import Prompts
from apps.serve.forms import ChatMessage, ScoreForm
from apps.web.errors import ApiError
from data.sources.messages import Text
from data.sources.text import after

Scored = tuple[Text, str, bool]  # prompt, answer, and whether it ended its turn


def answers_of(form: ScoreForm, prompts: Prompts) -> list[Scored]:
    """The answers to score.

    Raises:
        ApiError: both forms are given, or see `text_pairs` and `conversations`.
        UserError: see `conversations`.
    """
    if form.messages is None:
        return text_pairs(form, prompts)
    if form.prompts is not None or form.completions is not None:
        raise ApiError(
            400, "Give prompts and completions, or messages. This request has both.", param="messages"
        )
    return conversations(form, prompts)


def text_pairs(form: ScoreForm, prompts: Prompts) -> list[Scored]:
    """Prompts and completions, as stage PPO sends them to a reward endpoint.

    Raises:
        ApiError: one of the lists is missing, or their lengths differ.
    """
    if form.prompts is None or form.completions is None:
        raise ApiError(400, "Give prompts and completions, or messages.", code="missing_required_parameter")
    ended = [True] * len(form.prompts) if form.ended is None else form.ended
    if not len(form.prompts) == len(form.completions) == len(ended):
        raise ApiError(
            400,
            f"{len(form.prompts)} prompts, {len(form.completions)} completions, {len(ended)} of ended: "
            "give one of each for each answer.",
            param="completions",
        )
    joined = after if prompts.continues_text else lambda prompt, completion: completion  # PPO strips them
    return [
        (prompt, joined(prompt, completion), its_end)
        for prompt, completion, its_end in zip(form.prompts, form.completions, ended, strict=True)
    ]


def conversations(form: ScoreForm, prompts: Prompts) -> list[Scored]:
    """Conversations, each of which ends with the answer.

    Raises:
        ApiError: the last message is not the assistant's.
        UserError: the messages before it are no prompt of this run.
    """
    several = _several(form)
    ended = [True] * len(several) if form.ended is None else form.ended
    if len(ended) != len(several):
        raise ApiError(400, f"{len(ended)} values of ended for {len(several)} conversations.", param="ended")
    scored = []
    for messages, its_end in zip(several, ended, strict=True):
        *before, last = [message.plain() for message in messages]
        if last["role"] != "assistant":
            raise ApiError(400, "messages: the last one must be the assistant's answer.", param="messages")
        scored.append((prompts.prompt(before), last["content"], its_end))
    return scored


def _several(form: ScoreForm) -> Sequence[Sequence[ChatMessage]]:
    messages = form.messages or []
    one = [each for each in messages if isinstance(each, ChatMessage)]
    return [one] if one else [each for each in messages if not isinstance(each, ChatMessage)]
