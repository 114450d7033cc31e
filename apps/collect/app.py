"""The paths of the labelling server. It runs in one thread, so that events follow one another."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, get_args

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route

from apps.collect.desk import Desk, UnknownShowing, WrongKind
from apps.collect.figures import progress
from apps.collect.forms import HoldForm, NothingForm, SkipForm, SubmitForm
from apps.collect.people import People, Person
from apps.web.body import Body, json_object, read_body, validated
from apps.web.errors import HANDLERS, ApiError
from apps.web.guard import Guard
from apps.web.server import page_files
from data.people.events import HIGHEST, LOWEST, Outcome, Shown, SkipReason, Submitted
from data.people.round import Round

PAGE = Path(__file__).with_name("page")
MOST_BYTES, MOST_SECONDS, MOST_REQUESTS = 2**20, 30.0, 512
Json = dict[str, Any]


@dataclass(frozen=True)
class Lead:
    """What the lead of a round decides.

    Attributes:
        people: who may label.
        instructions: for them.
    """

    people: People
    instructions: str | None = None


def application(desk: Desk, lead: Lead) -> Starlette:
    """The labelling page and its interface over `desk`."""
    paths = Paths(desk, lead)
    routes: list[Route | Mount] = [
        Route("/", _page("index.html")),
        Route("/progress", _page("progress.html")),
        Route("/api/round", paths.round),
        Route("/api/next", paths.next, methods=["POST"]),
        Route("/api/submit", paths.submit, methods=["POST"]),
        Route("/api/skip", paths.skip, methods=["POST"]),
        Route("/api/undo", paths.undo, methods=["POST"]),
        Route("/api/hold", paths.hold, methods=["POST"]),
        Route("/api/progress", paths.progress),
        Mount("/page", page_files(PAGE)),
    ]
    open_paths = {route.path for route in routes}  # each of them finds out who asks
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(Guard, keys=lead.people.by_token, open_paths=open_paths, requests=MOST_REQUESTS)
        ],
        exception_handlers=HANDLERS | {UnknownShowing: _on_unknown_showing, WrongKind: _on_wrong_kind},
    )


def _page(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def page(_: Request) -> Response:
        return FileResponse(PAGE / name)

    return page


async def _on_unknown_showing(_: Request, error: Exception) -> Response:
    return ApiError(
        409, "This task is not before you any more. Ask for the next one.", code="unknown_showing"
    ).response()


async def _on_wrong_kind(_: Request, error: Exception) -> Response:
    return ApiError(409, f"{str(error)[:1].upper()}{str(error)[1:]}.", code="wrong_kind").response()


class Figures:
    """The figures of a round. A thread computes them, so that nobody waits, and once for all who ask."""

    def __init__(self, content: Round) -> None:
        self._round = content
        self._key: tuple[int, date] | None = None  # what they depend on
        self._known: Json = {}
        self._lock = asyncio.Lock()

    async def now(self) -> Json:
        """What the labels up to now amount to."""
        async with self._lock:
            key = self._round.labels.events, date.today()
            if key != self._key:
                self._known = await asyncio.to_thread(progress, self._round.snapshot())
                self._key = key
            return self._known


class Paths:
    """The functions behind the paths."""

    def __init__(self, desk: Desk, lead: Lead) -> None:
        self._desk, self._people, self._instructions = desk, lead.people, lead.instructions
        self._figures = Figures(desk.round)
        for shown in desk.labels.showings.values():
            self._people.spelling(shown.labeller)

    async def round(self, request: Request) -> Response:
        """GET /api/round: what is asked, and who asks. Without its token, nobody learns what it is about."""
        settings, person = self._desk.round.settings, self._people.who(request.headers)
        closed = self._people.by_token and person is None
        return JSONResponse(
            {
                "kind": settings.kind,
                "id": "" if closed else self._desk.round.id,
                "run": "" if closed else settings.run,
                "instructions": None if closed else self._instructions,
                "instructions_id": "" if closed else _digest(self._instructions or ""),
                "tokens": bool(self._people.by_token),
                "labeller": person.name if person else None,
                "lead": person.lead if person else False,
                "scale": [LOWEST, HIGHEST],
                "continues_text": settings.continues_text,
                "skip_reasons": get_args(SkipReason),
            }
        )

    async def next(self, request: Request) -> Response:
        """POST /api/next: the task for this person."""
        person, _ = await self._form(request, NothingForm)
        shown = self._desk.next(person.name)
        taken_back = None if shown is None else self._desk.labels.undone.get(shown.showing)
        return JSONResponse(self._task(person, shown, taken_back))

    async def submit(self, request: Request) -> Response:
        """POST /api/submit: an answer. The response says that it is on the disk."""
        person, form = await self._form(request, SubmitForm)
        self._desk.submit(person.name, form.answer())
        return JSONResponse({"counts": self._desk.counts(person.name)})

    async def skip(self, request: Request) -> Response:
        """POST /api/skip: no answer, and why."""
        person, form = await self._form(request, SkipForm)
        self._desk.skip(person.name, **dict(form))
        return JSONResponse({"counts": self._desk.counts(person.name)})

    async def undo(self, request: Request) -> Response:
        """POST /api/undo: the person's last task once more, with what it answered."""
        person, _ = await self._form(request, NothingForm)
        shown, outcome = self._desk.undo(person.name) or (None, None)
        return JSONResponse(self._task(person, shown, outcome))

    async def hold(self, request: Request) -> Response:
        """POST /api/hold: the person still works on its task."""
        person, form = await self._form(request, HoldForm)
        return JSONResponse({"expires_in": self._desk.hold(person.name, form.showing)})

    async def progress(self, request: Request) -> Response:
        """GET /api/progress: what all have done, and how well they agree."""
        if not self._person(request).lead:
            raise ApiError(403, "Only the lead of this round sees its progress.")
        return JSONResponse(await self._figures.now() | {"held": self._desk.assignment.held_now})

    def _person(self, request: Request) -> Person:
        person = self._people.who(request.headers)
        if person is None:
            raise ApiError(401, "Say who you are: a name, or the link that you got.", code="unknown_labeller")
        return person

    async def _form(self, request: Request, form: type[Body]) -> tuple[Person, Body]:
        person = self._person(request)
        return person, validated(form, json_object(await read_body(request, MOST_BYTES, MOST_SECONDS)))

    def _task(self, person: Person, shown: Shown | None, earlier: Outcome | None = None) -> Json:
        """The task of a showing as the page gets it."""
        counts = self._desk.counts(person.name)
        if shown is None:
            return {"task": None, "counts": counts}
        task, settings = self._desk.round.tasks[shown.task], self._desk.round.settings
        writes = settings.kind == "demonstrations"
        answers = [task.completions[position] for position in shown.order]
        return {
            "task": {
                "showing": shown.showing,
                "prompt": task.prompt,
                "answers": [] if writes else answers,
                "draft": answers[0].strip() if writes and answers else None,
                "expires_in": self._desk.assignment.hold(shown),
                "earlier": _earlier(shown, earlier),
                "seconds": earlier.seconds if earlier else 0,
            },
            "counts": counts,
        }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _earlier(shown: Shown, outcome: Outcome | None) -> Json | None:
    """What a person had answered, its ranks from 1 in the order in which the answers are shown."""
    if not isinstance(outcome, Submitted):
        return None
    ranks = outcome.ranks
    return {
        "ranks": None if ranks is None else [ranks[position] + 1 for position in shown.order],
        "rating": outcome.rating,
        "text": outcome.text,
        "demonstration": outcome.demonstration,
    }
