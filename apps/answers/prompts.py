"""Prompts of people as the tokens that a policy was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

from apps.trained_run import LoadedPolicies, TrainedRun
from configs.errors import UserError
from data.batches import tokenize
from data.batches.fit import NothingFits
from data.sources.bad_rows import BadRow
from data.sources.messages import Text, check_prompt, read_prompt
from stages.models.base_checks import context_window
from stages.models.roles import Roles

LONGEST = 4096  # tokens of prompt and answer, if the model has a larger window, or none


class TooLong(UserError):
    """A prompt has more tokens than the window."""


def window(base: Roles) -> int:
    """The most tokens of prompt and answer together."""
    return window_of(base.causal.config)


def window_of(config: PretrainedConfig) -> int:
    """The most tokens that a model reads here."""
    return min(LONGEST, context_window(config) or LONGEST)


class Prompts:
    """Turns what people write into the prompts of a run.

    Attributes:
        continues_text: whether the policies continue a text. If not, they answer in a chat.
        window: the most tokens of prompt and answer together.
    """

    def __init__(self, run: TrainedRun, loaded: LoadedPolicies) -> None:
        self.continues_text, self.window = not run.chat, window(loaded.base)
        self._tokenizer = loaded.tokenizer
        limits = {"max_length": self.window, "max_prompt_length": self.window - 1, "overlong": "drop"}
        # A plain string is a chat's turn if the run's rows are chats.
        self._data = run.config.data.model_copy(update=limits | {"chat": not self.continues_text})

    def of_text(self, text: str) -> list[int]:
        """Tokens of a text to continue; in a chat, of a conversation whose only turn it is.

        Raises:
            UserError: no tokenizer can read it, or it is too long.
        """
        return self._tokens(text, "prompt")

    def of_messages(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Tokens of a conversation; of the text of its only message if the policies continue texts.

        Raises:
            UserError: its roles do not alternate, several turns are no text to continue, or see `of_text`.
        """
        return self._tokens(self.prompt(messages), "messages")

    def prompt(self, messages: Sequence[dict[str, Any]]) -> Text:
        """The prompt in the form of the run's rows."""
        if self.continues_text:
            if [message["role"] for message in messages] != ["user"]:
                raise UserError(
                    "messages: the policies of this run continue a text (data.chat is false). Give one user "
                    "message, whose content is the text, or use /v1/completions."
                )
            text: str = messages[0]["content"]
            return text
        _check_order([message["role"] for message in messages])
        return list(messages)

    def _tokens(self, prompt: Text, where: str) -> list[int]:
        if prompt == "":
            raise UserError(f"{where}: the prompt is empty. Write some text.")
        try:
            row = {"prompt": as_prompt(prompt, where), "where": where}
            (encoded,), _ = tokenize.prompts([row], self._tokenizer, self._data)
        except BadRow as error:
            raise UserError(f"{error}.") from error
        except NothingFits as error:
            raise TooLong(
                f"{where}: longer than {self.window - 1} tokens, which leaves no token for an answer in the "
                f"window of {self.window}. Shorten it."
            ) from error
        return encoded.prompt_ids


def as_prompt(prompt: Text, where: str) -> Text:
    """A prompt that somebody wrote, read as that of a row: transcripts become messages.

    Raises:
        BadRow: it is no prompt, or an empty one.
    """
    read = read_prompt(prompt, where)
    if isinstance(prompt, str):  # the roles of messages have been checked, and an earlier answer may be empty
        check_prompt(read)
    return read


def _check_order(roles: Sequence[str]) -> None:
    """Raise UserError unless user and assistant alternate, after at most one system message."""
    turns = roles[1:] if roles[:1] in (["system"], ["developer"]) else roles
    expected = ["user" if number % 2 == 0 else "assistant" for number in range(len(turns))]
    if list(turns) != expected or len(turns) % 2 == 0:
        raise UserError(
            "messages: user and assistant must alternate, after at most one system message. The last message "
            f"must be the user's. The roles are {', '.join(roles):.200}."
        )
