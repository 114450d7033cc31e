"""Runs scripts in processes forked from a server that has imported the libraries.

Imports take longer than a stage of the tiny experiment. If a test is not about the launcher or the start of a
process, it can use this for `python SCRIPT` and `deepspeed SCRIPT` in a fraction of the time.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from typing import IO, NoReturn

from launch.deepspeed_command import free_port
from pipeline.planning import stage_checks

SERVER = multiprocessing.get_context("forkserver")
# One thread per process, so that sums have one order.
READ_AT_IMPORT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}


def run(
    command: Sequence[str], ranks: int, variables: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a script with its arguments to its end, in its own session.

    Args:
        ranks: number of ranks; 0 runs the script as one process without a process group.
        variables: the environment. At the first call, the libraries are imported with it, too.
        timeout: seconds after which all processes are killed.
    """
    _start_server(variables)
    with tempfile.NamedTemporaryFile("r") as output:
        process = SERVER.Process(target=_run_ranks, args=(command, ranks, variables, output.name))
        process.start()
        process.join(timeout)
        if process.is_alive():
            assert process.pid
            os.killpg(process.pid, signal.SIGKILL)
            raise TimeoutError(f"{' '.join(command)}\n{output.read()}")
        return subprocess.CompletedProcess(command, process.exitcode or 0, output.read())


def ask_preflight(order: str) -> subprocess.CompletedProcess[str]:
    """As `stage_checks.ask_preflight`, in a process forked from the server."""
    _start_server(os.environ)
    with _outputs() as (results, noise):
        where = os.getcwd(), dict(os.environ)
        process = SERVER.Process(target=_check, args=(order, *where, results.name, noise.name))
        process.start()
        process.join(stage_checks.MOST_SECONDS)
        return subprocess.CompletedProcess([], process.exitcode or 0, results.read(), noise.read())


def _ask_fork(order: str) -> subprocess.CompletedProcess[str]:
    """The same, in a fork of this process, which has imported the libraries."""
    with _outputs() as (results, noise):
        sys.stdout.flush()
        sys.stderr.flush()
        if not (process := os.fork()):
            try:
                _check(order, os.getcwd(), os.environ, results.name, noise.name)
                os._exit(0)
            except BaseException as error:
                traceback.print_exception(error)
                sys.stderr.flush()
                os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        return subprocess.CompletedProcess([], status, results.read(), noise.read())


@contextmanager
def _outputs() -> Iterator[tuple[IO[str], IO[str]]]:
    """Files for results, and for all else that is printed."""
    with (
        tempfile.NamedTemporaryFile("r", errors="replace") as results,
        tempfile.NamedTemporaryFile("r", errors="replace") as noise,
    ):
        yield results, noise


def _check(order: str, folder: str, variables: Mapping[str, str], results: str, noise: str) -> None:
    """What the process of `stage_checks.PREFLIGHT` does."""
    os.chdir(folder)
    variables = dict(variables)
    os.environ.clear()
    os.environ.update(variables)
    sys.path[:0] = [path for path in variables.get("PYTHONPATH", "").split(os.pathsep) if path]
    stream = os.open(noise, os.O_WRONLY | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)
    sys.stdin = io.StringIO(order)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    from stages.preflight import main

    main(os.open(results, os.O_WRONLY))
    sys.stdout.flush()


def _start_server(variables: Mapping[str, str]) -> None:
    """Start the server once. OpenMP and DeepSpeed read their variables when they are imported."""
    saved, wanted = dict(os.environ), {**variables, **READ_AT_IMPORT}
    os.environ.clear()
    os.environ.update(wanted)
    try:
        SERVER.set_forkserver_preload(["tests.support.libraries"])
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(saved)


def _run_ranks(command: Sequence[str], ranks: int, variables: Mapping[str, str], output: str) -> None:
    """Run the script, or start its ranks as DeepSpeed's launcher does and end them all if one fails."""
    os.setsid()
    os.environ.clear()
    os.environ.update(variables)
    stream = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    if not ranks:
        _run_script(command)
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    world = {name: str(ranks) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    processes, status = set[int](), 0
    for rank in range(ranks):
        if not (process := os.fork()):
            os.environ.update(rendezvous | world, RANK=str(rank), LOCAL_RANK=str(rank))
            _run_script(command)
        processes.add(process)
    while processes:
        process, code = os.wait()
        processes.discard(process)
        if code and not status:
            status = os.waitstatus_to_exitcode(code)
            for other in processes:
                os.kill(other, signal.SIGTERM)
    if status < 0:
        os.kill(os.getpid(), -status)
    os._exit(status)


def _run_script(command: Sequence[str]) -> NoReturn:
    """Run a script as Python runs its main program, and end."""
    stage_checks.ask_preflight = _ask_fork
    sys.argv = list(command)
    try:
        runpy.run_path(command[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
