"""Code of the user's that ends a stage's process: never with status 0, and one line says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.runs import RUN_STAGE, copy_upstream, stage_arguments, start_warm

THEIRS = """
import ctypes, os, posix, sys, threading
def score(prompts, completions):
    if len(prompts) > 2 and (os.environ.get("RANK", "0") in {ranks!r}):  # `plan` asks about two
        {statement}
    return [float(len(text)) for text in completions]
"""
REWARD = "ppo.rewards=[{source: 'theirs:score'}]"
THREAD = "thread = threading.Thread(target=os._exit, args=(0,)); thread.start(); thread.join()"


def ended(
    statement: str,
    run: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    ranks: int = 0,
    who: str = "01",
) -> tuple[int, str, str]:
    """Run PPO with a reward that ends its process; returns status, output and the manifest's error."""
    (folder / "theirs.py").write_text(THEIRS.format(ranks=list(who), statement=statement))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(folder)
    run_dir = copy_upstream(run, "ppo", folder / "run")
    command: list[str | Path] = [
        RUN_STAGE,
        *stage_arguments("ppo", run_dir, REWARD, "deepspeed.timeout_minutes=0.5"),
    ]
    done = start_warm(command, ranks)
    manifest = json.loads((run_dir / "ppo" / "manifest.json").read_text())
    return done.returncode, done.stdout, f"{manifest['status']}: {manifest['error']}"


@pytest.mark.parametrize("statement", ["sys.exit(0)", "os._exit(0)", "posix._exit(0)"])
@pytest.mark.parametrize("ranks", [0, 2])
def test_an_exit_is_an_error_of_the_function(
    statement: str, ranks: int, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, said, error = ended(statement, trained_run, tmp_path, monkeypatch, ranks=ranks)
    line = f"theirs:score ended the process with status 0 ({tmp_path}/theirs.py, line 5, in score)"
    assert status == 2, said
    assert said.count(f"error: ppo.rewards: {line}") >= 1 and "Traceback" not in said
    assert error.startswith("failed: ") and line in error


def test_an_exit_of_one_rank_of_two_is_told_by_rank_0(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, said, error = ended("os._exit(0)", trained_run, tmp_path, monkeypatch, ranks=2, who="1")
    assert status in (1, 2), said
    assert "error: rank 1 failed: UserError: ppo.rewards: theirs:score ended the process" in said
    assert "rank 1 failed" in error


def test_an_exit_of_a_thread_does_not_pass_for_success(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, said, _ = ended(THREAD, trained_run, tmp_path, monkeypatch)
    assert status == 1, said
    assert "error: a thread of your code ended the process with status 0 (os._exit)." in said


@pytest.mark.parametrize(
    ("statement", "how"),
    [
        ("ctypes.string_at(0)", "crashed: Segmentation fault at "),
        (
            "ctypes.CDLL(None)._exit(0)",
            "died without a message: it was killed, perhaps for lack of",
        ),
    ],
)
def test_a_rank_that_goes_without_python_is_told_by_rank_0(
    statement: str, how: str, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, said, error = ended(statement, trained_run, tmp_path, monkeypatch, ranks=2, who="1")
    assert status not in (0, 2), said
    assert "error: rank 1 (" in said and how in said and how in error
    if "crashed" in how:
        assert f"{tmp_path}/theirs.py" in error or "ctypes" in error


def test_a_child_that_is_forked_and_returns_does_not_train_on(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork = "child = os.fork()\n        if child: os.waitpid(child, 0)"
    status, said, error = ended(fork, trained_run, tmp_path, monkeypatch)
    assert (status, error) == (0, "finished: None"), said
    assert said.count("stage ppo finished") == 1
    rows = (tmp_path / "run/ppo/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(row)["step"] for row in rows]
    assert steps == sorted(steps)
