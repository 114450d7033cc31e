"""What code of the user's may change in this process, and how it is put back."""

from __future__ import annotations

import os
import posix
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
import torch

OF_A_THREAD = "error: a thread of your code ended the process with status 0 (os._exit)."
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _folder() -> str:
    """The working directory; nothing if it has been deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def _set_handlers(handlers: list[Any]) -> None:
    for signum, handler in zip(SIGNALS, handlers, strict=True):
        if handler is not None:  # else not Python has installed it
            signal.signal(signum, handler)


def _set_streams(streams: tuple[Any, Any]) -> None:
    sys.stdout, sys.stderr = streams


def _put_back_environment(before: dict[str, str]) -> None:
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def _flushes_denormals() -> bool:
    """Whether products below the smallest normal number are 0 in this thread."""
    return sys.float_info.min / 2 == 0


# What rounds products of fp32, in torch's newer settings. The older ones of matrices and of cuDNN set some.
BACKENDS: Any = torch.backends  # whose attributes torch's types leave out
PRECISIONS = (
    BACKENDS,
    BACKENDS.cuda.matmul,
    BACKENDS.cudnn,
    BACKENDS.cudnn.conv,
    BACKENDS.cudnn.rnn,
    BACKENDS.mkldnn.matmul,
    BACKENDS.mkldnn.conv,
    BACKENDS.mkldnn.rnn,
)


def _older_precisions() -> tuple[str, bool] | None:
    """None if the newer settings contradict the older ones, which torch refuses to read then."""
    try:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None


def _read_precisions() -> tuple[tuple[str, bool] | None, list[str]]:
    return _older_precisions(), [backend.fp32_precision for backend in PRECISIONS]


def _put_back_precisions(before: tuple[tuple[str, bool] | None, list[str]]) -> None:
    older, newer = before
    if older is not None:  # first: these set some of the newer ones
        torch.set_float32_matmul_precision(older[0])
        torch.backends.cudnn.allow_tf32 = older[1]
    for backend, precision in zip(PRECISIONS, newer, strict=True):
        backend.fp32_precision = precision


def _enable_mkldnn(on: bool) -> None:
    BACKENDS.mkldnn.enabled = on


# Settings of the whole process that a module may change for its own use: how to read and to set each.
SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (sys.getrecursionlimit, sys.setrecursionlimit),  # first, since what follows calls functions
    (_folder, os.chdir),
    (_umask, os.umask),
    (lambda: [signal.getsignal(signum) for signum in SIGNALS], _set_handlers),
    (lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0, lambda _: signal.setitimer(signal.ITIMER_REAL, 0)),
    (lambda: (sys.stdout, sys.stderr), _set_streams),
    (np.geterr, lambda errors: np.seterr(**errors)),
    (_read_precisions, _put_back_precisions),
    (_flushes_denormals, torch.set_flush_denormal),
    (lambda: BACKENDS.mkldnn.enabled, _enable_mkldnn),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (lambda: torch.is_autocast_enabled("cpu"), lambda on: torch.set_autocast_enabled("cpu", on)),
    (lambda: torch.is_autocast_enabled("cuda"), lambda on: torch.set_autocast_enabled("cuda", on)),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, torch.set_default_device),
    (torch.get_num_threads, torch.set_num_threads),
)


@contextmanager
def state_put_back(seed: int) -> Iterator[None]:
    """Run code of the user's within. Afterwards the process is as before.

    Random numbers of Python, NumPy and torch depend on `seed` alone, also in a stage that resumes.
    `os._exit` raises SystemExit, as `sys.exit` does: status 0 would pass for success.
    """
    of_python, of_numpy = random.getstate(), np.random.get_state()
    before = [(read, write, read()) for read, write in SETTINGS]
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices), _exit_raises():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            for read, write, value in before:
                if read() != value:
                    write(value)
            random.setstate(of_python)
            np.random.set_state(of_numpy)


@contextmanager
def environment_put_back() -> Iterator[None]:
    """Run a call of the user's within. Afterwards `os.environ` is as before.

    An import may set variables, such as the key of an API, for the calls that follow.
    """
    before = dict(os.environ)
    try:
        yield
    finally:
        if dict(os.environ) != before:
            _put_back_environment(before)


@contextmanager
def _exit_raises() -> Iterator[None]:
    """`os._exit` raises SystemExit within, and a child that is forked within ends within."""
    end_process, caller = os._exit, (os.getpid(), threading.get_ident())

    def raise_exit(status: int) -> NoReturn:
        if os.getpid() != caller[0]:
            end_process(status)
        if threading.get_ident() == caller[1]:
            raise SystemExit(status)
        if not status:
            os.write(2, f"{OF_A_THREAD}\n".encode())
        end_process(status or 1)  # in a thread of theirs, or in that which watches other ranks

    os._exit = posix._exit = raise_exit
    try:
        with _child_ends(caller[0], end_process):
            yield
    finally:
        os._exit = posix._exit = end_process


@contextmanager
def _child_ends(parent: int, end_process: Callable[[int], NoReturn]) -> Iterator[None]:
    """End a child that was forked within: as a second process of the stage it would train on, or fail."""
    status = 1
    try:
        yield
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    finally:
        if os.getpid() != parent:
            end_process(status)
