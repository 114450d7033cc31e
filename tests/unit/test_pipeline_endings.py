"""Which rank rank 0 holds to be the cause of its own error."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path

import pytest

from configs.errors import UserError
from pipeline import endings
from pipeline.endings import RankFailed, cause, leave_note
from pipeline.manifest import Process

BROKEN = RuntimeError("Connection closed by peer")


@pytest.fixture
def peer():
    """Rank 1, a process that is killed when the test is over."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def ranks(peer: subprocess.Popen[bytes]) -> list[Process]:
    this = Process.this()
    return [this, this.model_copy(update={"pid": peer.pid})]


def test_a_rank_that_dies_a_little_after_its_connections_is_the_cause(tmp_path: Path, peer) -> None:
    threading.Timer(0.4, peer.kill).start()
    found = cause(BROKEN, tmp_path, ranks(peer))
    assert isinstance(found, RankFailed)
    assert f"rank 1 ({ranks(peer)[1]}) died without a word" in str(found)


def test_a_rank_that_leaves_its_note_late_is_the_cause(tmp_path: Path, peer) -> None:
    threading.Timer(0.4, leave_note, (tmp_path, 1, ZeroDivisionError("its own"))).start()
    found = cause(BROKEN, tmp_path, ranks(peer))
    assert isinstance(found, RankFailed) and "rank 1 failed: ZeroDivisionError: its own" in str(found)


def test_where_the_others_live_the_error_is_rank_zeros_own(
    tmp_path: Path, peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "SECONDS_TO_LEARN_OF_A_PEER", 0.2)
    assert cause(BROKEN, tmp_path, ranks(peer)) is BROKEN


@pytest.mark.parametrize("error", [UserError("of the input"), BROKEN])
def test_nobody_is_waited_for_who_could_not_be_the_cause(tmp_path: Path, error: Exception) -> None:
    begin = time.monotonic()
    assert cause(error, tmp_path, []) is error
    assert time.monotonic() - begin < endings.SECONDS_TO_LEARN_OF_A_PEER
