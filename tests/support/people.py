"""Labelling rounds for tests, and servers of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import requests

from apps.collect import serve
from apps.collect.app import Lead, application
from apps.collect.assignment import Plan
from apps.collect.desk import Desk
from apps.collect.people import People
from apps.collect.tasks import make_task
from apps.web.server import Server, listening_socket
from data.people.results import write_results
from data.people.round import Kind, Round, Settings, create_round, held_round, read_round
from tests.support.waiting import until

ANSWERS = 4
EVERYTHING = Plan(overlap=0, again=0)
Json = dict[str, Any]


def new_round(folder: Path, kind: Kind = "rankings", tasks: int = 6, answers: int = ANSWERS) -> Round:
    """A round of `tasks` prompts, `Prompt 0`, ..., whose answers are `Answer 0.0`, `Answer 0.1`, ..."""
    settings = Settings(
        kind=kind, run="tiny", answers=answers, policies=("sft", "ppo"), prompts="data.rm", seed=3
    )
    made = [
        make_task(
            "held_out" if number % 3 == 2 else "train",
            f"Prompt {number}",
            [f"Answer {number}.{answer}" for answer in range(answers)],
            sources=["sft" if answer % 2 == 0 else "ppo" for answer in range(answers)],
        )
        for number in range(tasks)
    ]
    create_round(folder, settings, made)
    return read_round(folder)


@contextmanager
def desk_of(folder: Path, plan: Plan = EVERYTHING, **options: Any) -> Iterator[Desk]:
    """A desk over the round in `folder`, which is read anew."""
    with held_round(folder) as (content, file):
        yield Desk(content, file, plan, **options)


@dataclass(frozen=True)
class Labeller:
    """A client of the interface, as the page is one."""

    url: str
    name: str = ""
    token: str = ""

    def headers(self) -> dict[str, str]:
        if self.token:
            return {"Authorization": f"Bearer {self.token}"}
        return {"X-Labeller": quote(self.name)} if self.name else {}

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, headers=self.headers(), timeout=30)

    def post(self, path: str, body: Json | None = None) -> requests.Response:
        return requests.post(self.url + path, json=body or {}, headers=self.headers(), timeout=60)

    def next(self) -> Json | None:
        response = self.post("/api/next")
        assert response.status_code == 200, response.text
        task: Json | None = response.json()["task"]
        return task

    def take(self) -> Json:
        """The next task; there must be one."""
        task = self.next()
        assert task is not None
        return task

    def rank(self, task: Json, ranks: list[int] | None = None, **more: Any) -> requests.Response:
        ranks = ranks or list(range(1, len(task["answers"]) + 1))
        answer = {"showing": task["showing"], "submission": uuid4().hex, "seconds": 3.5, "ranks": ranks}
        return self.post("/api/submit", answer | more)


@contextmanager
def collecting(
    content: Round, plan: Plan = EVERYTHING, people: People | None = None, instructions: str | None = None
) -> Iterator[str]:
    """The URL of a server of the round, which runs while the context is open."""
    with held_round(content.folder) as (held, file), listening_socket("127.0.0.1", 0) as listener:
        desk = Desk(held, file, plan)
        app = application(desk, Lead(people or People({}), instructions))
        app.router.lifespan_context = lambda _: serve.keeping_results(held)
        server = Server(app)
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
        thread.start()
        until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            write_results(held)
        assert not thread.is_alive()
