"""Which rank caused an error on rank 0."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from configs.errors import UserError
from pipeline.processes import endings
from pipeline.processes.endings import RankFailed, cause, explained, leave_note
from pipeline.state.manifest import Process
from pipeline.tracking.metric_files import FileSink
from stages.context import Interrupted

BROKEN = RuntimeError("Connection closed by peer")


@pytest.fixture
def peer():
    """Rank 1, a process that the fixture kills after the test."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def ranks(peer: subprocess.Popen[bytes]) -> list[Process]:
    rank_0 = Process.this()
    return [rank_0, rank_0.model_copy(update={"pid": peer.pid})]


def test_a_rank_that_dies_a_little_after_its_connections_is_the_cause(tmp_path: Path, peer) -> None:
    threading.Timer(0.4, peer.kill).start()
    failure = cause(BROKEN, tmp_path, ranks(peer))
    assert isinstance(failure, RankFailed)
    assert f"rank 1 ({ranks(peer)[1]}) died without a message" in str(failure)


def test_a_rank_that_leaves_its_note_late_is_the_cause(tmp_path: Path, peer) -> None:
    threading.Timer(0.4, leave_note, (tmp_path, 1, ZeroDivisionError("its own"))).start()
    failure = cause(BROKEN, tmp_path, ranks(peer))
    assert isinstance(failure, RankFailed) and "rank 1 failed: ZeroDivisionError: its own" in str(failure)


STUCK = """
import ctypes, sys
from pathlib import Path
from pipeline.processes import endings
from pipeline.state.manifest import Process
endings.SECONDS_BETWEEN_POLLS, endings.SECONDS_TO_LEAVE_COLLECTIVE = 0.05, 0.3
logs, what = Path(sys.argv[1]), sys.argv[2]
with endings.reporting_when_stuck(logs, [Process.this()] * 2, lambda error: print("recorded:", error)):
    notes = {"failed": ZeroDivisionError("its own"), "hung": RuntimeError("gloo: Timed out waiting 1000ms")}
    endings.leave_note(logs, 1, notes.get(what, KeyboardInterrupt()))
    if what != "heard of":
        ctypes.CDLL(None).sleep(2)  # as in a kernel of NCCL: no handler runs, no exception comes
print("went on")
"""


@pytest.mark.parametrize("event", ["failed", "hung", "heard of", "interrupted"])
def test_rank_0_speaks_of_a_failed_rank_where_it_is_stuck_itself(event: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", STUCK, str(tmp_path), event]
    result = subprocess.run(command, cwd=Path(__file__).parents[4], capture_output=True, text=True)
    if event == "failed":
        assert result.returncode == 1 and "error: rank 1 failed: ZeroDivisionError: its own" in result.stderr
    elif event == "hung":  # the other rank waited for this one
        assert result.returncode == 1 and "error: rank 0 hung: " in result.stderr
        assert "<string>:12, in <module>" in result.stderr and "rank 1" not in result.stderr
    else:
        assert result.returncode == 0 and result.stdout == "went on\n"


TIMED_OUT = RuntimeError(
    "[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1000ms for recv operation"
)
HANGING = """
import faulthandler, signal, sys, time
faulthandler.register(signal.SIGUSR1, file=open(sys.argv[1], "w"), all_threads=False)
def stuck():
    print(flush=True)
    time.sleep(60)
stuck()
"""


@pytest.fixture
def hanging(tmp_path: Path):
    """Rank 1, which hangs in `stuck` and writes its stack beside the logs."""
    command = [sys.executable, "-c", HANGING, str(tmp_path / "rank1.stack")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_the_rank_that_the_others_waited_for_is_named_with_its_place(tmp_path: Path, hanging) -> None:
    failure = cause(TIMED_OUT, tmp_path, ranks(hanging))
    assert isinstance(failure, RankFailed) and "rank 1 hung" in str(failure) and "in stuck" in str(failure)


def test_a_stopped_rank_is_named(tmp_path: Path, hanging) -> None:
    (tmp_path / "rank1.stack").write_text('File "old.py", line 1 in earlier_answer\n')
    hanging.send_signal(signal.SIGSTOP)
    failure = cause(TIMED_OUT, tmp_path, ranks(hanging))
    assert isinstance(failure, RankFailed)
    assert "rank 1 hung: the others waited for it" in str(failure) and "is stopped (SIGSTOP" in str(failure)
    assert str(hanging.pid) in str(failure) and "earlier_answer" not in str(failure)


def test_of_ranks_that_gave_up_none_is_the_cause(tmp_path: Path, hanging) -> None:
    leave_note(tmp_path, 1, TIMED_OUT)
    rank_0, rank_1 = ranks(hanging)
    rank_2 = Process.this().model_copy(update={"pid": hanging.pid})
    (tmp_path / "rank2.stack").hardlink_to(tmp_path / "rank1.stack")  # one process for two ranks
    failure = cause(TIMED_OUT, tmp_path, [rank_0, rank_1, rank_2])
    assert isinstance(failure, RankFailed) and "rank 2 hung" in str(failure)


def test_rank_0_knows_where_it_hung(tmp_path: Path, peer) -> None:
    def stuck() -> None:
        raise Interrupted(15)

    leave_note(tmp_path, 1, TIMED_OUT)
    with pytest.raises(Interrupted) as caught:
        stuck()
    failure = cause(caught.value, tmp_path, ranks(peer))
    assert isinstance(failure, RankFailed) and "rank 0 hung" in str(failure) and "in stuck" in str(failure)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_collective_that_timed_out_is_told_without_torchs_traceback(
    rank: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(endings, "SECONDS_TO_FIND_HUNG_RANK", 0.0)
    endings.report(TIMED_OUT, rank)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:-1] == [f"rank {rank}:"][:rank]
    assert "deepspeed.timeout_minutes" in lines[-1] and "Timed out waiting" not in lines[-1]


def test_where_the_others_live_the_error_is_rank_zeros_own(
    tmp_path: Path, peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "SECONDS_TO_DETECT_FAILED_RANK", 0.2)
    assert cause(BROKEN, tmp_path, ranks(peer)) is BROKEN


@pytest.mark.parametrize("error", [UserError("of the input"), BROKEN])
def test_nobody_is_waited_for_who_could_not_be_the_cause(tmp_path: Path, error: Exception) -> None:
    begin = time.monotonic()
    assert cause(error, tmp_path, []) is error
    assert time.monotonic() - begin < endings.SECONDS_TO_DETECT_FAILED_RANK


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM]
)
def test_a_disk_or_folder_that_refuses_is_the_users_to_mend(number: int, tmp_path: Path) -> None:
    error = explained(OSError(number, os.strerror(number), "metrics.jsonl"), tmp_path)
    assert isinstance(error, UserError) and str(error).startswith("metrics.jsonl: could not be ")
    assert "What was saved before is whole" in str(error)
    rust_error = explained(Exception(f"{os.strerror(number)} (os error {number})"), tmp_path)
    assert isinstance(rust_error, UserError) and str(rust_error).startswith(f"{tmp_path}: could not be ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_full_under_the_journal_is_told(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError) as caught:
        FileSink(tmp_path).log({"loss": 1.0}, 1)
    assert "could not be written, no space is left on it" in str(explained(caught.value, tmp_path))


def test_messages_of_ours_are_not_explained_away(tmp_path: Path) -> None:
    error = UserError("base.model: cannot load: Permission denied (os error 13). Give a local folder.")
    assert explained(error, tmp_path) is error


def test_other_errors_stay_as_they_are(tmp_path: Path) -> None:
    for error in (OSError(errno.EIO, "input/output error"), ValueError("13"), BROKEN):
        assert explained(error, tmp_path) is error


def test_a_rank_whose_disk_is_full_ends_by_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(endings, "write_text", full)
    leave_note(tmp_path, 1, ZeroDivisionError("its own"))
    assert not list(tmp_path.iterdir())
