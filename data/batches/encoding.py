"""Token ids of text and of conversations. Special tokens in what people wrote are text, like any other.

Only the chat template, and the tokenizer's own beginning of a text, write control tokens.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from weakref import WeakKeyDictionary, proxy

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from configs.errors import UserError
from data.batches.template_process import Conversation, TemplateFault, render
from data.sources.messages import Message

# Four of Unicode's noncharacters, which no text holds. The first two enclose the number of a control token,
# the others that of a special token in a message, while the template renders it.
RESERVED = re.compile("[\ufdd0-\ufdd3]")
IN_MESSAGE = re.compile("\ufdd2(\\d+)\ufdd3")


class Encoder:
    """Encodes for one tokenizer: with a copy of it, in which special tokens have other names.

    The copy knows a special token only by its number between noncharacters. So no text can hold one, and the
    text around one has the tokens that it has in the tokenizer itself.

    It works as long as the tokenizer lives, which it does not keep alive.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = proxy(tokenizer)
        added = {id_: token for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._contents = {str(number): token.content for number, token in enumerate(added.values())}
        self._numbers = {content: number for number, content in self._contents.items()}
        self._pattern = _any_of(list(self._numbers))
        # Unknown text is the unknown token, and a mask hides padding.
        harmless = {tokenizer.unk_token_id, tokenizer.pad_token_id} - {tokenizer.eos_token_id}
        self._control = set(added) - harmless
        self._backend = _without_names(tokenizer.backend_tokenizer, list(added.values()))
        names = (f"\ufdd0{number}\ufdd1" for number in range(len(added)))
        self._ids = dict(zip(map(self._backend.token_to_id, names), added, strict=True))

    def text(self, text: str, where: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text.

        Raises:
            UserError: it holds a noncharacter, or a special token that the tokenizer cannot write as text.
        """
        self._check(text, where)
        return self._encode(text, where, add_special_tokens)

    def conversations(
        self, conversations: Sequence[Conversation], where: str, answers: Sequence[int] = (-1,)
    ) -> list[list[int]]:
        """The ids of conversations in the chat template.

        Args:
            answers: positions of the assistant's messages that the template must render whole, unless only
                a prompt is rendered.

        Raises:
            UserError: see `text`; or the template failed, cut a special token in a message, or left out a
                part of the answer, of a question or of the system message.
        """
        marked = [
            ([self._marked(message, where) for message in messages], prompt)
            for messages, prompt in conversations
        ]
        texts = rendered(self._tokenizer, marked, where)
        numbered = [self._with_numbers(text, where) for text in texts]
        for (messages, prompt), text in zip(marked, texts, strict=True):
            learned = () if prompt else [messages[position] for position in answers]
            for message in messages:
                if message["role"] != "assistant" or any(message is answer for answer in learned):
                    self._check_whole(message, text, where)
        return [self._encode(text, where, add_special_tokens=False) for text in numbered]

    def special_tokens_in(self, text: str) -> list[str]:
        """The special tokens whose text is in `text`."""
        return self._pattern.findall(text)

    def _marked(self, message: Message, where: str) -> Message:
        """The message with numbers in place of the special tokens in it."""
        self._check(message["content"], where)
        content = self._pattern.sub(
            lambda match: f"\ufdd2{self._numbers[match[0]]}\ufdd3", message["content"]
        )
        return {**message, "content": content}

    def _with_numbers(self, text: str, where: str) -> str:
        """A rendered text, with numbers for the template's special tokens and text for those of messages."""
        text = self._pattern.sub(lambda match: f"\ufdd0{self._numbers[match[0]]}\ufdd1", text)
        text = self._without_numbers(text)
        if "\ufdd2" in text or "\ufdd3" in text:
            raise UserError(f"{where}: the chat template cuts a special token in it. Remove it from the row.")
        return text

    def _without_numbers(self, text: str) -> str:
        """A text with the special tokens of messages as text."""
        return IN_MESSAGE.sub(lambda match: self._contents.get(match[1], match[0]), text)

    def _check_whole(self, message: Message, text: str, where: str) -> None:
        """Refuse a template that leaves out a part of a message, such as all before `</think>`."""
        content = message["content"]
        if content.strip() not in text and "".join(content.split()) not in "".join(text.split()):
            what = "answer" if message["role"] == "assistant" else f"{message['role']} message"
            shown = self._without_numbers(content).strip()[:60]
            raise UserError(
                f"{where}: the chat template leaves out a part of the {what} {shown!r}. Set "
                f"data.chat_template to a template that renders whole {what}s."
            )

    def _encode(self, text: str, where: str, add_special_tokens: bool) -> list[int]:
        encoding = self._backend.encode(text, add_special_tokens=add_special_tokens)
        if not self._control.isdisjoint(encoding.ids):
            for id_, of_tokenizer in zip(encoding.ids, encoding.special_tokens_mask, strict=True):
                if id_ in self._control and not of_tokenizer:
                    raise UserError(_only_special(self._tokenizer.convert_ids_to_tokens(id_), where))
        ids = [self._ids.get(id_, id_) for id_ in encoding.ids]
        return self._without_end(ids, encoding.special_tokens_mask)

    def _without_end(self, ids: list[int], added: Sequence[int]) -> list[int]:
        """The ids without the end of the text, which some tokenizers add: what follows must go on there.

        Args:
            added: for each id, whether the tokenizer added it. One that begins a text remains.
        """
        count = len(ids)
        while count > 1 and added[count - 1] and ids[count - 1] == self._tokenizer.eos_token_id:
            count -= 1
        return ids[:count]

    def _check(self, text: str, where: str) -> None:
        if not text.isascii() and (match := RESERVED.search(text)):
            raise UserError(
                f"{where}: it holds U+{ord(match[0]):X}, which Unicode reserves for programs. Remove it."
            )


class PythonEncoder(Encoder):
    """Encodes with a tokenizer in Python, which has no copy: texts with special tokens are refused."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = proxy(tokenizer)
        added = tokenizer.added_tokens_decoder.values()
        self._pattern = _any_of([token.content for token in added if token.special])

    def _with_numbers(self, text: str, where: str) -> str:
        return text

    def _encode(self, text: str, where: str, add_special_tokens: bool) -> list[int]:
        # No warning about long sequences: they are cut or dropped later.
        encoding = self._tokenizer(
            text, add_special_tokens=add_special_tokens, return_special_tokens_mask=True, verbose=False
        )
        return self._without_end(list(encoding["input_ids"]), encoding["special_tokens_mask"])

    def _check(self, text: str, where: str) -> None:
        if tokens := self.special_tokens_in(text):
            raise UserError(_only_special(tokens[0], where))


def rendered(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation], where: str
) -> list[str]:
    """`render`, with a UserError that names the row if the template fails."""
    if tokenizer.chat_template is None:
        raise UserError(
            f"{where}: this is a conversation, but the tokenizer of {tokenizer.name_or_path} has no chat "
            "template. Set data.chat_template to a Jinja file, or use a base model for chat."
        )
    try:
        return render(tokenizer, conversations)
    except TemplateFault as fault:
        raise UserError(
            f"{where}: the chat template failed on it: {fault!s:.200}. Correct the row, or set "
            "data.chat_template to a template that accepts it."
        ) from fault


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    """Matches any of `texts`, the longest first. Looking at the first letter alone makes it fast."""
    first = "".join(sorted({re.escape(text[0]) for text in texts}))
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile(f"(?=[{first}])(?:{'|'.join(map(re.escape, longest_first))})" if texts else "(?!)")


def _without_names(backend: Tokenizer, special: Sequence[AddedToken]) -> Tokenizer:
    """A copy that knows the tokens `special` as the numbers 0, 1, ... between two noncharacters."""
    backend = copy.deepcopy(backend)
    backend.encode_special_tokens = True  # that is, as text
    backend.no_truncation()
    backend.no_padding()
    for number, token in enumerate(special):
        flags = {"lstrip": token.lstrip, "rstrip": token.rstrip, "single_word": token.single_word}
        name = AddedToken(f"\ufdd0{number}\ufdd1", special=False, normalized=token.normalized, **flags)
        backend.add_tokens([name])
    return backend


def _only_special(token: str, where: str) -> str:
    return (
        f"{where}: it holds {token!r}, which its tokenizer knows as a special token only, and not as text. "
        "Remove it, or use a base with another tokenizer."
    )


_encoders: WeakKeyDictionary[PreTrainedTokenizerBase, Encoder] = WeakKeyDictionary()


def encoder_of(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """The encoder of `tokenizer`, which is made once."""
    if tokenizer not in _encoders:
        _encoders[tokenizer] = (Encoder if tokenizer.is_fast else PythonEncoder)(tokenizer)
    return _encoders[tokenizer]
