"""Ranks end with their launcher, and with no other process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[4]
RANK = """
import time
from pipeline.processes.parent_watch import follow_launcher
follow_launcher()
print("begun", flush=True)
time.sleep(60)
"""
# A process that starts the rest of its command line and waits, as launchers do.
LAUNCHER = "import subprocess, sys; subprocess.run(sys.argv[2:])"
START = [sys.executable, "-c", LAUNCHER]
TRISTAGE = """
import os, subprocess, sys
from pipeline.processes.parent_watch import mark_of_this_process
subprocess.run(sys.argv[1:], env=os.environ | mark_of_this_process(), start_new_session=True)
"""
MACHINE = "deepspeed.launcher.launch"


@pytest.fixture(params=[True, False], ids=["launcher", "shell"])
def processes_of_launcher(request) -> Iterator[tuple[bool, list[psutil.Process]]]:
    """`deepspeed`, its process for this machine, and a rank; or three processes without a launcher."""
    launched = {"LOCAL_RANK": "0"} if request.param else {}
    inherited = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
    command = [*START, "deepspeed", *START, MACHINE, sys.executable, "-c", RANK]
    launcher = subprocess.Popen(
        command, cwd=ROOT, env=inherited | launched, stdout=subprocess.PIPE, text=True
    )
    assert launcher.stdout is not None and launcher.stdout.readline() == "begun\n"
    processes = [psutil.Process(launcher.pid), *psutil.Process(launcher.pid).children(recursive=True)]
    yield request.param, processes
    for process in processes:
        if process.is_running():
            process.kill()
    launcher.wait()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_ends_with_each_process_of_its_launcher(
    victim: int, processes_of_launcher: tuple[bool, list[psutil.Process]]
) -> None:
    launched, processes = processes_of_launcher
    assert len(processes) == 3
    processes[victim].kill()
    ended, _ = psutil.wait_procs(processes[2:], timeout=8 if launched else 3)
    assert bool(ended) == launched


@pytest.mark.parametrize("local_rank", [{"LOCAL_RANK": "0"}, {}], ids=["rank", "run of a sweep"])
def test_a_process_ends_with_the_tristage_that_started_it(local_rank: dict[str, str]) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"} | local_rank
    command = [
        sys.executable,
        "-c",
        TRISTAGE,
        *START,
        "deepspeed",
        *START,
        MACHINE,
        sys.executable,
        "-c",
        RANK,
    ]
    top = subprocess.Popen(command, cwd=ROOT, env=kept, stdout=subprocess.PIPE, text=True)
    assert top.stdout is not None and top.stdout.readline() == "begun\n"
    processes = psutil.Process(top.pid).children(recursive=True)
    top.kill()  # SIGKILL to `tristage` alone
    top.wait()
    ended, _ = psutil.wait_procs(processes[-1:], timeout=8)
    for process in processes:
        if process.is_running():
            process.kill()
    assert ended
