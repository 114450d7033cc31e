"""The answers of one request, from the worker's thread to the request's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence

from apps.answers.answer import Answer, Piece
from apps.serve.errors import model_failed, too_slow
from apps.serve.formats import Envelope, Format, Json, usage
from apps.web.errors import ApiError, closing

Event = tuple[int, Piece]
DONE = "data: [DONE]\n\n"


class Generation:
    """Answers while they are decoded. Use it as a context: what is not over at its end is cancelled.

    Attributes:
        prompt_tokens: of the request's prompts.
        deadline: of the request, by the clock of the event loop.
    """

    def __init__(
        self,
        answers: Sequence[Answer],
        prompt_tokens: int,
        seconds: float,
        release: Callable[[int], None],
    ) -> None:
        """`release` is called at the context's end, with the number of answers."""
        self._release = release
        self._answers, self.prompt_tokens, self._seconds = answers, prompt_tokens, seconds
        self._loop = asyncio.get_running_loop()
        self.deadline = self._loop.time() + seconds
        self._events = asyncio.Queue[Event]()
        for index, answer in enumerate(answers):
            answer.deliver = self._receiver(index)

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        for answer in self._answers:
            answer.cancelled = answer.finish is None
        self._release(len(self._answers))

    def _receiver(self, index: int) -> Callable[[Piece], None]:
        def deliver(piece: Piece) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._events.put_nowait, (index, piece))

        return deliver

    async def events(self) -> AsyncIterator[Event]:
        """New pieces of any answer, until all answers are over.

        Raises:
            ApiError: the model failed, the server closes, or the request takes too long.
        """
        left = len(self._answers)
        while left:
            try:
                async with asyncio.timeout_at(self.deadline):
                    index, piece = await self._events.get()
            except TimeoutError:
                raise too_slow(self._seconds) from None
            if piece.failed == "closing":
                raise closing()
            if piece.failed:
                raise model_failed()
            left -= piece.finish is not None
            yield index, piece

    def usage(self) -> Json:
        """The tokens so far."""
        return usage(self.prompt_tokens, sum(len(answer.tokens) for answer in self._answers))

    async def whole(self, form: Format, envelope: Envelope) -> Json:
        """The response without a stream."""
        pieces: list[list[Piece]] = [[] for _ in self._answers]
        async for index, piece in self.events():
            pieces[index].append(piece)
        choices = [form.choice(index, _joined(parts)) for index, parts in enumerate(pieces)]
        return envelope.whole(choices, self.usage())

    async def stream(self, form: Format, envelope: Envelope, *, with_usage: bool) -> AsyncIterator[str]:
        """The response as server-sent events. An error is the last event of the stream."""
        extra = {"usage": None} if with_usage else {}
        openings = [form.opening(index) for index in range(len(self._answers))]
        for opening in openings:
            if opening:
                yield _event(envelope.chunk([opening]) | extra)
        try:
            async for index, piece in self.events():
                yield _event(envelope.chunk([form.delta(index, piece)]) | extra)
        except ApiError as error:
            yield _event(error.body())
            return
        if with_usage:
            yield _event(envelope.chunk([]) | {"usage": self.usage()})
        yield DONE


def _joined(pieces: Sequence[Piece]) -> Piece:
    text = "".join(piece.text for piece in pieces)
    return Piece(text, [token for piece in pieces for token in piece.tokens], pieces[-1].finish)


def _event(content: Json) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
