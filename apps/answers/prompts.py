"""Prompts of people as the tokens that a policy was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apps.trained_run import LoadedPolicies, TrainedRun
from configs.errors import UserError
from configs.schema import Experiment
from data.batches import tokenize
from data.batches.fit import NothingFits
from data.sources.bad_rows import BadRow
from data.sources.loading import first_rows
from data.sources.messages import Text, read_text
from data.sources.reading import is_local
from stages.models.roles import Roles

LONGEST = 4096  # tokens of prompt and answer, if the base has a larger window


class TooLong(UserError):
    """A prompt has more tokens than the window."""


def window(base: Roles) -> int:
    """The most tokens of prompt and answer together."""
    text = base.causal.config.get_text_config().to_dict()
    return min(LONGEST, text.get("max_position_embeddings") or LONGEST)


def continues_text(config: Experiment) -> bool:
    """Whether the policies continue a text. If not, they answer in a chat.

    Without `data.chat`, the form of the prompts decides: rows of messages are a chat, too.
    """
    source = config.data.sources("ppo")[0]
    if config.data.chat or not is_local(source):
        return not config.data.chat
    try:
        return isinstance(first_rows(source, "prompts", 1)[0]["prompt"], str)
    except (UserError, OSError):  # the data has moved; the run is complete without it
        return True


class Prompts:
    """Turns what people write into the prompts of a run.

    Attributes:
        continues_text: see the function.
        window: the most tokens of prompt and answer together.
    """

    def __init__(self, run: TrainedRun, loaded: LoadedPolicies) -> None:
        self.continues_text, self.window = continues_text(run.config), window(loaded.base)
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
            row = {"prompt": read_text(prompt, where), "where": where}
            (encoded,), _ = tokenize.prompts([row], self._tokenizer, self._data)
        except BadRow as error:
            raise UserError(f"{error}.") from error
        except NothingFits as error:
            raise TooLong(
                f"{where}: longer than {self.window - 1} tokens, which leaves no token for an answer in the "
                f"window of {self.window}. Shorten it."
            ) from error
        return encoded.prompt_ids


def _check_order(roles: Sequence[str]) -> None:
    """Raise UserError unless user and assistant alternate, after at most one system message."""
    turns = roles[1:] if roles[:1] in (["system"], ["developer"]) else roles
    expected = ["user" if number % 2 == 0 else "assistant" for number in range(len(turns))]
    if list(turns) != expected or len(turns) % 2 == 0:
        raise UserError(
            "messages: user and assistant must alternate, after at most one system message. The last message "
            f"must be the user's. The roles are {', '.join(roles):.200}."
        )
