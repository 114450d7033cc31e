"""The text of an answer while its tokens arrive: no half characters, nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

HALF = "\ufffd"  # what a decoder shows for bytes that are no whole character yet


class AnswerText:
    """Text that grows with its tokens.

    Attributes:
        text: the part that no later token changes.
        stopped: whether a stop string ended it. The text ends before that string.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = (), before: Sequence[int] = ()
    ) -> None:
        """`before`: the token before the answer. Some decoders drop the blank of a text's first token."""
        self._tokenizer, self._stop, self._before = tokenizer, stop, list(before)
        self._ids: list[int] = []
        self.text, self.stopped = "", False

    def add(self, token: int) -> None:
        """Add a token. Text that may be half a character, or begin a stop string, is held back."""
        self._ids.append(token)
        whole = self._whole()
        found = [place for stop in self._stop if (place := whole.find(stop, len(self.text))) >= 0]
        if found:
            self.text, self.stopped = whole[: min(found)], True
            return
        self._grow(whole[: len(whole) - self._held_back(whole)])

    def end(self) -> None:
        """The last token was added: nothing is held back any more."""
        if not self.stopped:
            self._grow(self._whole())

    def _grow(self, text: str) -> None:
        if text.startswith(self.text):
            self.text = text

    def _whole(self) -> str:
        """The text of all tokens so far."""
        start, text = self._decode(self._before), self._decode([*self._before, *self._ids])
        return text[len(start) :] if text.startswith(start) else self._decode(self._ids)

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _held_back(self, whole: str) -> int:
        """The number of last characters that later tokens may change or remove."""
        sure = whole.rstrip(HALF)
        begun = [
            length
            for stop in self._stop
            for length in range(1, min(len(stop), len(sure) + 1))
            if sure.endswith(stop[:length])
        ]
        return len(whole) - len(sure) + max(begun, default=0)
