"""Log files, and silence for messages of libraries that nobody can act on.

`silence` runs before the heavy imports, because some libraries print while they are imported. `open_logs`
runs after them, because some libraries install their own log handlers then.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import warnings
from logging.handlers import RotatingFileHandler
from pathlib import Path

from configs.safe_text import safe

ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
}
# Logger name, and the beginnings of messages that nobody can act on.
NOISE = {
    "DeepSpeed": ("Setting accelerator to CPU",),
    "bitsandbytes.backends.cpu.ops": ("Failed to load CPU gemm_4bit_forward",),
}
LOG_BYTES, OLD_LOGS = 16 * 2**20, 4  # size of a log file, and the number of full ones that stay
# Deprecations inside the libraries.
WARNINGS = (
    r"`torch\.distributed\.\w+` is deprecated",
    r"`is_gradient_checkpointing` is deprecated",
)
# Libraries that install their own handlers and do not propagate their messages.
OWN_HANDLERS = ("DeepSpeed", "transformers", "datasets", "huggingface_hub")


def silence() -> None:
    """Set filters, and environment variables that are not set yet. Call before importing torch."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name, beginnings in NOISE.items():
        logging.getLogger(name).addFilter(_Beginnings(beginnings))
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=FutureWarning)


def hide_loading() -> None:
    """Show no progress bar while transformers loads weights, and none of its warnings."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def log_to_terminal() -> None:
    """Print warnings and errors on stderr: a command that is no stage has no folder for logs."""
    logging.getLogger().handlers = [_terminal_handler()]


def open_logs(folder: Path, rank: int) -> Path:
    """Send all log messages and warnings to `folder/rankN.log`. Rank 0 prints warnings on stderr too.

    At SIGUSR1 the process writes its stack to `folder/rankN.stack`, whatever it is doing. So it does if it
    crashes, as by a segmentation fault in a library.

    Returns the log file.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # of loading weights, once per rank
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rank{rank}.log"
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    logging.raiseExceptions = False  # a full disk is reported once, not by every message
    root.handlers = [_file_handler(path)] + ([_terminal_handler()] if rank == 0 else [])
    stack = os.open(folder / f"rank{rank}.stack", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    faulthandler.register(signal.SIGUSR1, file=stack, all_threads=False)
    faulthandler.enable(file=stack, all_threads=False)
    logging.captureWarnings(True)
    for name in OWN_HANDLERS:
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
    return path


def _file_handler(path: Path) -> logging.Handler:
    handler = RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=OLD_LOGS, encoding="utf-8")
    handler.setFormatter(_SafeFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler


def _terminal_handler() -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(_SafeFormatter("%(levelname)s %(name)s: %(message)s"))
    return handler


class _SafeFormatter(logging.Formatter):
    """Keeps secrets and escape sequences out of messages and tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return safe(super().format(record))


class _Beginnings(logging.Filter):
    """Drops messages that begin in one of the given ways."""

    def __init__(self, beginnings: tuple[str, ...]) -> None:
        super().__init__()
        self._beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self._beginnings)
