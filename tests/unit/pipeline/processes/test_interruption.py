"""Ctrl-C outside of a stage's work."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
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
from launch import commands
def interrupted(*_):
    os.kill(os.getpid(), getattr(signal, sys.argv.pop()))
commands.exit_status = interrupted
sys.exit(commands.main())
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


STARTED = "import sys; sys.argv = ['tristage', 'plan']; from launch.cli import main; sys.exit(main())"


def catches_sigterm(process: subprocess.Popen[str]) -> bool:
    """Whether a process handles SIGTERM, which Python itself does not."""
    (caught,) = re.findall(r"^SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("seconds", [0, 0.05, 0.1, 0.2, 0.4, 0.7, 1])
def test_the_imports_of_tristage_end_in_one_line(name: str, seconds: float) -> None:
    """The script handles signals within milliseconds. It imports libraries for a second after that."""
    process = subprocess.Popen(
        [sys.executable, "-c", STARTED],
        cwd=Path(__file__).parents[4],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not catches_sigterm(process):
        time.sleep(0.001)
    time.sleep(seconds)
    os.killpg(process.pid, signal.Signals[name])  # as a terminal does: to what it has started, too
    _, stderr = process.communicate(timeout=60)
    assert stderr == f"interrupted by {name}; the same command resumes\n"
    assert process.returncode == 128 + signal.Signals[name]
