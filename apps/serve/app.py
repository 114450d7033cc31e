"""The paths of the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send
from transformers import PreTrainedTokenizerBase

from apps.serve.formats import ChatFormat, Envelope, Format, TextFormat
from apps.serve.forms import ChatForm, Sampled, ScoreForm, TextForm, parse
from apps.serve.generation import Generation
from apps.serve.limits import Limits
from apps.serve.service import Service, status
from apps.web.body import Body, read_body
from apps.web.errors import HANDLERS
from apps.web.guard import Guard
from apps.web.server import page_files

OPEN_PATHS = ("/health", "/")
PAGE = Path(__file__).with_name("page")
GONE = 499  # nobody reads this response
LAST_EVENT = 5.0  # seconds after the deadline, in which the event that tells of it is sent
Result = TypeVar("Result")


def application(
    service: Service, tokenizer: PreTrainedTokenizerBase, key: str | None, limits: Limits | None = None
) -> Starlette:
    """The server's paths over `service`, which it closes at the end."""
    limits = limits or Limits()
    paths = Paths(service, tokenizer, limits)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        service.close()

    return Starlette(
        routes=[
            Route("/", _page),
            Route("/health", paths.health),
            Route("/v1/models", paths.models),
            Route("/v1/models/{name:path}", paths.model),
            Route("/v1/run", paths.about),
            Route("/v1/chat/completions", paths.chat, methods=["POST"]),
            Route("/v1/completions", paths.complete, methods=["POST"]),
            Route("/v1/score", paths.score, methods=["POST"]),
            Mount("/page", page_files(PAGE)),
        ],
        middleware=[
            Middleware(Guard, keys=[key] if key else [], open_paths=OPEN_PATHS, requests=limits.requests)
        ],
        exception_handlers=HANDLERS,
        lifespan=lifespan,
    )


async def _page(_: Request) -> Response:
    return FileResponse(PAGE / "index.html")


class Paths:
    """The functions behind the paths."""

    def __init__(self, service: Service, tokenizer: PreTrainedTokenizerBase, limits: Limits) -> None:
        self._service, self._tokenizer, self._limits = service, tokenizer, limits

    async def health(self, _: Request) -> Response:
        """GET /health."""
        return JSONResponse(status(self._service.worker))

    async def models(self, _: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": self._service.models()})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        return JSONResponse(self._service.model(request.path_params["name"]))

    async def about(self, _: Request) -> Response:
        """GET /v1/run."""
        return JSONResponse(self._service.about())

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        form = await self._form(request, ChatForm)
        answers = ChatFormat(self._tokenizer, form.logprobs)
        return await self._respond(request, form, answers, self._service.chat(form))

    async def complete(self, request: Request) -> Response:
        """POST /v1/completions."""
        form = await self._form(request, TextForm)
        answers = TextFormat(self._tokenizer, form.logprobs is not None)
        return await self._respond(request, form, answers, self._service.complete(form))

    async def score(self, request: Request) -> Response:
        """POST /v1/score."""
        form = await self._form(request, ScoreForm)
        rewards = await _while_connected(request, self._service.score(form))
        return Response(status_code=GONE) if rewards is None else JSONResponse({"rewards": rewards})

    async def _form(self, request: Request, form: type[Body]) -> Body:
        return parse(form, await read_body(request, self._limits.body_bytes, self._limits.body_seconds))

    @staticmethod
    async def _respond(
        request: Request, form: Sampled, answers: Format, starting: Awaitable[Generation]
    ) -> Response:
        """The answers as one response, or as a stream."""
        envelope = Envelope(answers, form.model)
        generation = await starting
        if form.stream:
            with_usage = form.stream_options.include_usage
            return EventStream(generation, generation.stream(answers, envelope, with_usage=with_usage))
        with generation:
            whole = await _while_connected(request, generation.whole(answers, envelope))
        return Response(status_code=GONE) if whole is None else JSONResponse(whole)


class EventStream(StreamingResponse):
    """Server-sent events. If the client leaves, or does not read them in time, the answers are cancelled."""

    def __init__(self, generation: Generation, events: AsyncIterator[str]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        with self._generation, suppress(TimeoutError):
            async with asyncio.timeout_at(self._generation.deadline + LAST_EVENT):
                await super().__call__(scope, receive, send)


async def _while_connected(request: Request, work: Awaitable[Result]) -> Result | None:
    """The result of `work`; None if the client left before."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
