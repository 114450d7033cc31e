"""How a stage's processes end: what is said of it, and which rank was the cause."""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from configs.errors import UserError
from data.storage.files import write_text
from pipeline.processes.hangs import timed_out, where_hung, where_raised
from pipeline.state.manifest import Process
from stages.context import Interrupted, Paused

logger = logging.getLogger("tristage")

# When one and the same error strikes all ranks, rank 0 is to report it. The launcher ends the other
# ranks as soon as rank 0 exits; a rank that is still there after this long has something of its own to say.
RANK_ZERO_SPEAKS_FIRST_SECONDS = 4.0
# A rank's connections close before it is seen to be dead, or has left its note.
SECONDS_TO_LEARN_OF_A_PEER = 2.0
# The rank that failed is heard of by a collective that breaks, or by the launcher's signal, well before.
SECONDS_BETWEEN_LOOKS, SECONDS_TO_NOTICE = 1.0, 10.0
STOPPED = "interrupted"
REFUSED = {
    errno.ENOSPC: "could not be written, no space is left on it",
    errno.EDQUOT: "could not be written, the quota on it is used up",
    errno.EFBIG: "could not be written, a file there may not be so large (ulimit -f)",
    errno.EROFS: "could not be written, it is read-only",
    errno.EACCES: "could not be opened, permission is denied",
    errno.EPERM: "could not be opened, permission is denied",
}


class RankFailed(Exception):
    """Another rank failed, and this one could not go on without it."""


def stopped(error: BaseException) -> bool:
    """Whether a person or a scheduler ended the process, rather than a failure."""
    return isinstance(error, Interrupted | KeyboardInterrupt)


def explained(error: BaseException, folder: Path) -> BaseException:
    """A disk that is full or a folder that is closed is the user's to mend; other errors are as they are."""
    told = re.search(r"\(os error (\d+)\)", str(error))  # by tokenizers, whose errors are no OSError
    number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
    if isinstance(error, UserError) or number not in REFUSED:
        return error
    file = error.filename if isinstance(error, OSError) and error.filename else folder
    explanation = UserError(
        f"{file}: {REFUSED[number]}. What was saved before is whole: mend that, and the same command resumes."
    )
    explanation.__cause__ = error
    return explanation


def exit_code(error: BaseException) -> int:
    if isinstance(error, UserError):
        return 2
    if isinstance(error, Interrupted):
        return error.exit_code
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def one_line(error: BaseException) -> str:
    return str(error) if isinstance(error, RankFailed) else f"{type(error).__name__}: {error}"


def report(error: BaseException, rank: int) -> None:
    """Say what happened: a message for the user's errors, a traceback for the program's."""
    logger.info("ended by %s", one_line(error), exc_info=error)
    if stopped(error):
        if rank == 0:
            print(f"interrupted by {error}; the same command resumes", file=sys.stderr, flush=True)
        return
    if rank != 0:
        time.sleep(RANK_ZERO_SPEAKS_FIRST_SECONDS)
        print(f"rank {rank}:", file=sys.stderr)
    if isinstance(error, UserError | RankFailed):
        print(f"error: {error}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)


def leave_note(logs: Path, rank: int, error: BaseException) -> None:
    """Leave word of how this rank ended, before its end strikes the others."""
    if logs.is_dir():
        with suppress(OSError):  # of a disk that is full, which may be how it ended
            write_text(_note(logs, rank), STOPPED if stopped(error) else one_line(error))


def clear_notes(logs: Path) -> None:
    for note in logs.glob("rank*.ended"):
        note.unlink()


def cause(error: BaseException, logs: Path, peers: Sequence[Process]) -> BaseException:
    """What rank 0 should report in place of `error`: the failure of a rank that ended before it.

    A rank that fails takes the others with it: their collectives break, or the launcher sends them SIGTERM.

    Args:
        peers: the process of each rank, rank 0 included; empty where there is no other.
    """
    if isinstance(error, UserError | Paused):
        return error  # of the input, which all ranks read; or the end of all ranks together
    until = time.monotonic() + SECONDS_TO_LEARN_OF_A_PEER * (len(peers) > 1)
    while not (failed := _failed_peer(logs, peers)) and time.monotonic() < until:
        time.sleep(0.05)
    return _hung_rank(failed or error, error, logs, peers) or failed or error


@contextmanager
def speaking_when_stuck(
    logs: Path, peers: Sequence[Process], record: Callable[[BaseException], None]
) -> Iterator[None]:
    """Within, rank 0 tells of a rank that failed even where its own main thread never learns of it.

    gloo's collectives break when a rank leaves, NCCL's go on waiting, and no signal handler runs meanwhile:
    after some seconds a thread calls `record`, says what happened and ends the process.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(SECONDS_BETWEEN_LOOKS):
            failed = _failed_peer(logs, peers, noted_only=True)
            if failed and not over.wait(SECONDS_TO_NOTICE):
                record(failed)
                print(f"error: {failed}", file=sys.stderr, flush=True)
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
    """The rank that the others waited for until a collective was given up, if that is what was `seen`."""
    if not timed_out(str(seen)):
        return None
    if stopped(error):  # not by the collective: this rank was not in it
        return _hung(0, where_raised(error))
    silent = {rank: peer for rank, peer in enumerate(peers) if rank and not _note(logs, rank).exists()}
    return next((_hung(rank, place) for rank, place in where_hung(silent, logs)), None)


def _hung(rank: int, place: str) -> RankFailed:
    return RankFailed(
        f"rank {rank} hung: the others waited for it until deepspeed.timeout_minutes were over, and "
        f"it was at {place}.\nIf it was only slow, raise that; else mend the cause. The same command resumes."
    )


def _failed_peer(logs: Path, peers: Sequence[Process], noted_only: bool = False) -> RankFailed | None:
    for rank, process in enumerate(peers[1:], 1):
        note = _note(logs, rank)
        if note.exists():
            word = note.read_text(encoding="utf-8")
            if word != STOPPED:
                return RankFailed(f"rank {rank} failed: {word}\nSee {logs / f'rank{rank}.log'}.")
        elif not noted_only and process.host == socket.gethostname() and _gone(process.pid):
            return RankFailed(
                f"rank {rank} ({process}) died without a word: it was killed, for memory perhaps."
            )
    return None


def _gone(pid: int) -> bool:
    try:
        status: str = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return True
    return status == psutil.STATUS_ZOMBIE  # dead, and the launcher has not looked yet


def _note(logs: Path, rank: int) -> Path:
    return logs / f"rank{rank}.ended"
