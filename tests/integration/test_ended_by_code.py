"""Code of the user's that ends a stage's process: never with status 0, and one line says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import ending_code
from tests.support.runs import RUN_STAGE, copy_upstream, stage_arguments, start_warm

SOURCE = "tests.support.ending_code:score"
LINE = f"{SOURCE} ended the process with status 0 ({ending_code.__file__}, line "


def ended(
    way: str, run: Path, folder: Path, patch: pytest.MonkeyPatch, *, ranks: int = 0, who: str = "01"
) -> tuple[int, str, str]:
    """Run PPO with a reward that ends its process; returns status, output, and the manifest's error."""
    patch.setenv("ENDING", way)
    patch.setenv("ENDING_RANKS", who)
    run_dir = copy_upstream(run, "ppo", folder / "run")
    words = stage_arguments("ppo", run_dir, f"ppo.rewards=[{{source: '{SOURCE}'}}]")
    command: list[str | Path] = [RUN_STAGE, *words]
    done = start_warm(command, ranks)
    manifest = json.loads((run_dir / "ppo" / "manifest.json").read_text())
    return done.returncode, done.stdout, f"{manifest['status']}: {manifest['error']}"


@pytest.mark.parametrize(
    ("way", "ranks"), [("sys.exit", 0), ("os._exit", 0), ("posix._exit", 0), ("os._exit", 2)]
)
def test_an_exit_is_an_error_of_the_function(
    way: str, ranks: int, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, said, error = ended(way, trained_run, tmp_path, monkeypatch, ranks=ranks)
    assert status == 2, said
    assert f"error: ppo.rewards: {LINE}" in said and "Traceback" not in said
    assert error.startswith("failed: ") and LINE in error


def test_an_exit_of_a_thread_does_not_pass_for_success(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, said, _ = ended("thread", trained_run, tmp_path, monkeypatch)
    assert status == 1, said
    assert "error: a thread of your code ended the process with status 0 (os._exit)." in said


@pytest.mark.parametrize(
    ("way", "how"),
    [
        ("os._exit", f"rank 1 failed: UserError: ppo.rewards: {LINE}"),
        ("segmentation fault", "crashed: Segmentation fault at "),
        ("exit of C", "died without a message: it was killed, perhaps for lack of memory, or code that"),
    ],
)
def test_a_rank_that_is_gone_is_told_by_rank_0(
    way: str, how: str, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, said, error = ended(way, trained_run, tmp_path, monkeypatch, ranks=2, who="1")
    assert status != 0, said
    assert "error: rank 1 " in said and how in said and how in error, said


def test_a_child_that_is_forked_and_returns_does_not_train_on(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, said, error = ended("fork", trained_run, tmp_path, monkeypatch)
    assert (status, error) == (0, "finished: None"), said
    rows = (tmp_path / "run/ppo/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(row)["step"] for row in rows]
    assert steps == sorted(steps) and said.count("stage ppo finished") == 1
