"""Runs cases of bad input, and checks what holds of every error message."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from configs.load import load_experiment
from launch import commands
from pipeline import stage_process
from pipeline.planning.request import Request
from pipeline.processes import logs
from pipeline.stage_process import run_stage
from pipeline.state.run_directory import RunDirectory
from tests.support.pipeline_runs import single_rank

MOST_LINES = 9  # five bad rows, the heading and the remedy
LONGEST = 3000
GOOD = [{"prompt": f"What is {number}?", "completions": ["a", "b"]} for number in range(20)]
SHORT = ("data.max_length=256", "data.max_prompt_length=128")  # what the tiny model has room for
refusals: list[str] = []  # the messages that a test has checked
VALID = """name: trial
base: {model: tiny-random}
data:
  sft: {path: sft.jsonl}
  rm: {path: rm.jsonl}
  ppo: {path: ppo.jsonl}
tracking: {wandb: disabled}
"""


def experiment(folder: Path, text: str | bytes = VALID) -> Path:
    """Write `folder/trial.yaml` and its data files."""
    folder.mkdir(exist_ok=True)
    for stage in ("sft", "rm", "ppo"):
        write_rows(folder / f"{stage}.jsonl", [{"prompt": "p", "completions": ["a", "b"]}])
    file = folder / "trial.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return file


def trial(folder: Path) -> Path:
    """Write an experiment whose stages have twenty good rows each."""
    file = experiment(folder)
    for stage in ("sft", "rm", "ppo"):
        write_rows(folder / f"{stage}.jsonl", GOOD)
    return file


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def tristage(*arguments: str | Path) -> tuple[int, str, str]:
    """Run the command `tristage` inside this process; returns exit status, stdout, stderr."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tristage", *map(str, arguments)])
        patch.setattr(logs, "silence", lambda: None)
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            status = commands.main()
    return status, stdout.getvalue(), stderr.getvalue()


def plan_error(tmp_path: Path, text: str | bytes, *arguments: str) -> str:
    """The message with which `tristage plan` refuses an experiment. The command changes no file."""
    file = experiment(tmp_path, text)
    before = files(tmp_path)
    status, stdout, stderr = tristage("plan", "--config", file, "--run-dir", tmp_path / "run", *arguments)
    assert status == 2 and "Traceback" not in stdout
    assert files(tmp_path) == before and not (tmp_path / "run").exists()
    return stderr


def stage_run(file: Path, run_dir: Path, stage: Any, *overrides: str, **switches: Any) -> tuple[int, str]:
    """Run `run_stage` inside this process without a process group; returns exit status and output."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_process, "_process_group", single_rank)
        patch.setattr(logs, "open_logs", lambda folder, rank: folder)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            request = Request(load_experiment(file, overrides), RunDirectory(run_dir), **switches)
            status = run_stage(request, stage)
    return status, output.getvalue()


def check_message(message: str, *parts: str) -> None:
    """Check that a message is short, contains all `parts`, and has no traceback."""
    refusals.append(message)
    for part in parts:
        assert part in message, message[:LONGEST]
    assert "Traceback" not in message
    assert message.count("\n") < MOST_LINES and len(message) < LONGEST, message[:LONGEST]


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder except locks, which are empty."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def flip(path: Path, position: int = 3) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
