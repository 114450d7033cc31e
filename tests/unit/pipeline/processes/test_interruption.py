"""Ctrl-C outside of a stage's work."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

SLOW_IMPORTS = """
import os, signal
from pipeline.processes.interruption import end_imports_in_one_line
end_imports_in_one_line()
try:
    os.kill(os.getpid(), signal.SIGINT)
finally:
    os.kill(os.getpid(), signal.SIGTERM)  # the launcher's copy
"""


@pytest.mark.parametrize(
    ("rank", "said"), [("0", "interrupted by SIGINT; the same command resumes\n"), ("1", "")]
)
def test_an_interrupted_import_ends_in_one_line_of_rank_0(rank: str, said: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SLOW_IMPORTS],
        cwd=Path(__file__).parents[4],
        env={"RANK": rank},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert (result.returncode, result.stderr) == (128 + signal.SIGINT, said)


PLANNING = """
import os, signal, sys
from launch import cli
def interrupted(*_):
    os.kill(os.getpid(), getattr(signal, sys.argv.pop()))
cli.exit_status = interrupted
sys.exit(cli.main())
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_tristage_says_in_one_line_that_it_was_interrupted(name: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PLANNING, name],
        cwd=Path(__file__).parents[4],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert result.stderr == f"interrupted by {name}; the same command resumes\n"
    assert result.returncode == 128 + signal.Signals[name]
