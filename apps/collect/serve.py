"""`tristage collect KIND`: serve the labelling page of a round until a signal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from apps.collect.app import Lead, application
from apps.collect.assignment import Plan
from apps.collect.desk import Desk
from apps.collect.people import People, read_people
from apps.web.server import Server, is_loopback, listening_socket, url_of
from configs.errors import UserError
from configs.regular_file import read_regular_file
from data.people.results import write_results
from data.people.round import Round, held_round
from pipeline.processes.streams import say

SECONDS_BETWEEN_RESULTS = 5.0
MOST_INSTRUCTIONS = 100_000  # bytes


@dataclass(frozen=True)
class Desktop:
    """How a round is served.

    Attributes:
        labellers: a file of people with tokens; None for anybody on this machine.
        instructions: a file of text for labellers.
    """

    host: str
    port: int
    labellers: Path | None
    instructions: Path | None
    plan: Plan

    def check(self) -> None:
        """Raise UserError if a file or the address cannot be used. Sampling may take long; this does not."""
        checked_people(self.host, self.labellers)
        read_instructions(self.instructions)
        listening_socket(self.host, self.port).close()


def checked_people(host: str, file: Path | None) -> People:
    """Who may label.

    Raises:
        UserError: other machines reach the address and nobody has a token, or see `read_people`.
    """
    if file is None and not is_loopback(host):
        raise UserError(
            f"--host {host:.100}: other machines reach this address. Name the people who may label, each "
            "with a token, in a file: --labellers FILE, or serve on 127.0.0.1."
        )
    return read_people(file)


def read_instructions(file: Path | None) -> str | None:
    """The text of a file for labellers; raises UserError if it cannot be read."""
    if file is None:
        return None
    try:
        return read_regular_file(file, MOST_INSTRUCTIONS).decode()
    except (OSError, ValueError) as error:
        raise UserError(f"--instructions: {file!s:.200}: cannot be read: {error!s:.150}.") from None


def serve(folder: Path, desktop: Desktop) -> int:
    """Serve the round in a folder until SIGINT or SIGTERM. Returns the exit status.

    Raises:
        UserError: the address is taken, another server has the round, or a file cannot be read.
        OSError: the results cannot be written at the end. The labels are on the disk.
    """
    people = checked_people(desktop.host, desktop.labellers)
    instructions = read_instructions(desktop.instructions)
    with listening_socket(desktop.host, desktop.port) as listener, held_round(folder) as (content, file):
        desk = Desk(content, file, desktop.plan)
        app = application(desk, Lead(people, instructions))
        app.router.lifespan_context = lambda _: keeping_results(content)
        Server(app).run_at(listener, lambda: _say_where(content, url_of(listener), people))
        write_results(content)
    settings, missing = content.settings, len(content.unlabelled)
    say(f"stopped; {settings.kind}: {content.results_file}, {missing} of {len(content.tasks)} still missing")
    return 0


@asynccontextmanager
async def keeping_results(content: Round) -> AsyncIterator[None]:
    """Write the results while the server runs. The caller writes them once more at its end."""

    async def keep() -> None:
        written = -1
        while True:
            if written != (now := content.labels.events):
                try:
                    write_results(content)
                    written = now
                except OSError as error:
                    say(f"{content.results_file}: not written: {error}. The server tries again.", error=True)
            await asyncio.sleep(SECONDS_BETWEEN_RESULTS)

    task = asyncio.create_task(keep())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _say_where(content: Round, url: str, people: People) -> None:
    kind, tasks, missing = content.settings.kind, len(content.tasks), len(content.unlabelled)
    say(f"collecting {kind}: {tasks} tasks, {missing} still missing, in {content.folder}")
    if people.by_token:
        say(f"each of {len(people.by_token)} people opens {url}/#token=TOKEN, with the token of --labellers")
    else:
        say(f"open {url}")
    leads = not people.by_token or any(person.lead for person in people.by_token.values())
    say(f"progress: {url}/progress; Ctrl-C ends" if leads else "nobody in --labellers is lead; Ctrl-C ends")
