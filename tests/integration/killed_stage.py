"""`launch/run_stage.py` on a machine that dies: SIGKILL to all of its processes once a step is logged.

python killed_stage.py STEP --stage ... (the arguments of run_stage.py)

The step is logged and its checkpoint, if one is due, is not yet written: the worst moment.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])

from launch import run_stage  # noqa: E402
from pipeline.tracking import FileSink  # noqa: E402


def die_after(last: int) -> None:
    """Let the file sink kill this process group when it has written the metrics of step `last`."""
    log = FileSink.log

    def log_and_die(self: FileSink, metrics: Mapping[str, Any], step: int) -> None:
        log(self, metrics, step)
        if step == last and "learning_rate" in metrics:
            os.killpg(os.getpgid(0), signal.SIGKILL)

    FileSink.log = log_and_die  # type: ignore[method-assign]


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument.isdigit()]
    sys.argv.remove(arguments[0])
    die_after(int(arguments[0]))
    sys.exit(run_stage.main())
