"""A stream whose client reads nothing more: it holds its places no longer than others may."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from apps.serve import app
from apps.serve.generation import Generation


async def never(*_: Any) -> Any:
    """What a client that neither reads nor leaves lets happen."""
    await asyncio.Event().wait()


async def events() -> AsyncIterator[str]:
    yield "data: {}\n\n"


def test_a_client_that_stops_reading_frees_its_places(monkeypatch) -> None:
    monkeypatch.setattr(app, "LAST_EVENT", 0.1)
    released: list[int] = []

    async def stream() -> None:
        generation = Generation([], 0, 0.1, released.append)
        async with asyncio.timeout(20):
            await app.EventStream(generation, events())({"type": "http"}, never, never)

    asyncio.run(stream())
    assert released == [0]
