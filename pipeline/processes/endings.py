"""How a stage's processes end: the message, and which rank was the cause."""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from configs.errors import UserError, Waiting
from configs.safe_text import safe
from data.storage.files import write_text
from pipeline.processes.hangs import crash_of, place_of_main_thread, timed_out, where_hung, where_raised
from pipeline.processes.streams import say
from pipeline.state.manifest import Process
from stages.context import Interrupted, Paused

logger = logging.getLogger("tristage")

# If one error strikes all ranks, rank 0 reports it. The launcher ends the other ranks as soon as rank 0
# exits. A rank that is alive after this long has its own error to report.
SECONDS_BEFORE_OTHER_RANKS_REPORT = 4.0
# Rank 0 needs longer to find the rank that hangs, in particular if it is that rank itself.
SECONDS_TO_FIND_HUNG_RANK = 20.0
# The connections of a rank close before its death shows, or before its note is written.
SECONDS_TO_DETECT_FAILED_RANK = 2.0
# A failed rank usually shows well before, by a broken collective or the launcher's signal.
SECONDS_BETWEEN_POLLS, SECONDS_TO_LEAVE_COLLECTIVE = 1.0, 10.0
STOPPED = "interrupted"
REFUSED = {
    errno.ENOSPC: "could not be written, no space is left on it",
    errno.EDQUOT: "could not be written, the quota on it is used up",
    errno.EFBIG: "could not be written, a file there may not be so large (ulimit -f)",
    errno.EROFS: "could not be written, it is read-only",
    errno.EACCES: "could not be opened, permission is denied",
    errno.EPERM: "could not be opened, permission is denied",
    errno.EISDIR: "could not be written, a folder is in its place",
    errno.ENOTDIR: "could not be written, a file is in the place of its folder",
    errno.EEXIST: "could not be written, something else is in its place",
    errno.ELOOP: "could not be opened, a link is in its place",
    errno.ENAMETOOLONG: "could not be written, its name is too long",
}


GAVE_UP = (
    "another rank hangs: this one waited for it for deepspeed.timeout_minutes. "
    "If it was only slow, raise that; else the ranks' logs may show the cause. The same command resumes."
)


class RankFailed(Exception):
    """Another rank failed, and this one cannot continue without it."""


def stopped(error: BaseException) -> bool:
    """Whether a person or a scheduler ended the process, rather than a failure."""
    return isinstance(error, Interrupted | KeyboardInterrupt)


def explained(error: BaseException, folder: Path) -> BaseException:
    """Turn what a disk or a folder refuses into a UserError; return other errors unchanged."""
    match = re.search(r"\(os error (\d+)\)", str(error))  # tokenizers raises no OSError
    number = error.errno if isinstance(error, OSError) else int(match[1]) if match else None
    if isinstance(error, UserError) or number not in REFUSED:
        return error
    file = error.filename if isinstance(error, OSError) and error.filename else folder
    explanation = UserError(
        f"{file}: {REFUSED[number]}. What was saved before is whole. Fix this, and the same command resumes."
    )
    explanation.__cause__ = error
    return explanation


def exit_code(error: BaseException) -> int:
    if isinstance(error, UserError | Interrupted):
        return error.exit_code
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def one_line(error: BaseException) -> str:
    """The message for manifests and notes, without secrets."""
    return safe(str(error) if isinstance(error, RankFailed) else f"{type(error).__name__}: {error}")


def report(error: BaseException, rank: int) -> None:
    """Print the error: a message if the user must fix something, else a traceback."""
    logger.info("ended by %s", one_line(error), exc_info=error)
    gave_up = timed_out(str(error)) and not isinstance(error, UserError | RankFailed)
    if stopped(error):
        if rank == 0:
            say(f"interrupted by {error}; the same command resumes", error=True)
        return
    if rank != 0:
        time.sleep(SECONDS_TO_FIND_HUNG_RANK if gave_up else SECONDS_BEFORE_OTHER_RANKS_REPORT)
        say(f"rank {rank}:", error=True)
    if isinstance(error, Waiting):
        say(str(error))
    elif isinstance(error, UserError | RankFailed):
        say(f"error: {error}", error=True)
    elif gave_up:  # torch's traceback only shows the collective; the log has it
        say(f"error: {GAVE_UP}", error=True)
    else:
        traceback.print_exception(error)


def leave_note(logs: Path, rank: int, error: BaseException) -> None:
    """Write down how this rank ended, before its end strikes the others."""
    if logs.is_dir():
        with suppress(OSError):  # a full disk may be the reason
            write_text(_note(logs, rank), STOPPED if stopped(error) else one_line(error))


def clear_notes(logs: Path) -> None:
    for note in logs.glob("rank*.ended"):
        note.unlink()


def cause(error: BaseException, logs: Path, peers: Sequence[Process]) -> BaseException:
    """What rank 0 should report instead of `error`: the failure of a rank that ended before it.

    A rank that fails takes the others with it: their collectives break, or the launcher sends them SIGTERM.

    Args:
        peers: the process of each rank, rank 0 included; empty if there is only one.
    """
    if isinstance(error, UserError | Paused):
        return error  # all ranks read the same input, or all pause together
    until = time.monotonic() + SECONDS_TO_DETECT_FAILED_RANK * (len(peers) > 1)
    while not (failed := _failed_peer(logs, peers)) and time.monotonic() < until:
        time.sleep(0.05)
    return _hung_rank(failed or error, error, logs, peers) or failed or error


@contextmanager
def reporting_when_stuck(
    logs: Path, peers: Sequence[Process], record: Callable[[BaseException], None]
) -> Iterator[None]:
    """Report a failed rank from rank 0, even if rank 0's main thread waits in a collective.

    gloo's collectives break when a rank leaves. NCCL's wait on, and no signal handler runs meanwhile. So a
    thread calls `record` after some seconds, prints the error and ends the process.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(SECONDS_BETWEEN_POLLS):
            failed = _failed_peer(logs, peers, noted_only=True)
            if failed and not over.wait(SECONDS_TO_LEAVE_COLLECTIVE):
                error = _hung_behind(failed, logs, peers) or failed
                record(error)
                say(f"error: {error}", error=True)
                os._exit(1)

    if len(peers) > 1:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _hung_rank(
    seen: BaseException, error: BaseException, logs: Path, peers: Sequence[Process]
) -> RankFailed | None:
    """The rank that the others waited for, if `seen` is the timeout of a collective."""
    if not timed_out(str(seen)):
        return None
    if stopped(error):  # by a signal, so this rank was outside the collective
        return _hung(0, where_raised(error))
    silent = {rank: peer for rank, peer in enumerate(peers) if rank and not _note(logs, rank).exists()}
    return next((_hung(rank, place) for rank, place in where_hung(silent, logs)), None)


def _hung_behind(failed: RankFailed, logs: Path, peers: Sequence[Process]) -> RankFailed | None:
    """The rank that `failed` waited for, while this rank's main thread does not return."""
    if timed_out(str(failed)) and (place := place_of_main_thread()):
        return _hung(0, place)
    return _hung_rank(failed, failed, logs, peers)


def _hung(rank: int, place: str) -> RankFailed:
    return RankFailed(
        f"rank {rank} hung: the others waited for it for deepspeed.timeout_minutes, and it was at {place}.\n"
        "If it was only slow, raise that; else fix the cause. The same command resumes."
    )


def _failed_peer(logs: Path, peers: Sequence[Process], noted_only: bool = False) -> RankFailed | None:
    for rank, process in enumerate(peers[1:], 1):
        note = _note(logs, rank)
        if note.exists():
            reason = note.read_text(encoding="utf-8")
            if reason != STOPPED:
                return RankFailed(f"rank {rank} failed: {reason}\nSee {logs / f'rank{rank}.log'}.")
        elif not noted_only and process.host == socket.gethostname() and _gone(process.pid):
            if crash := crash_of(logs, rank):
                return RankFailed(f"rank {rank} ({process}) crashed: {crash}.")
            return RankFailed(
                f"rank {rank} ({process}) died without a message: it was killed, perhaps for lack of memory, "
                "or code that it called ended it."
            )
    return None


def _gone(pid: int) -> bool:
    try:
        status: str = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return True
    return status == psutil.STATUS_ZOMBIE  # dead, and not yet collected by the launcher


def _note(logs: Path, rank: int) -> Path:
    return logs / f"rank{rank}.ended"
