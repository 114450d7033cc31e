"""Has `stages.preflight` try what the stages will read and call, before any of them has trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.schema import Experiment, Stage
from pipeline.planning.plan import StagePlan

ROOT = Path(__file__).resolve().parents[2]  # first on the path of a stage's process, too
# What libraries and the user's code print goes to stderr, from their import on. Results have their own pipe.
PREFLIGHT = (
    f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); results = os.dup(1); os.dup2(2, 1); "
    "from stages.preflight import main; main(results)"
)
MOST_SECONDS = 600  # to import a function's libraries, and to load its models
LONGEST = 300  # characters of what a process said at its end


def check_stages(config: Experiment, plans: Sequence[StagePlan]) -> list[str]:
    """Check bases, data, functions and endpoints of the stages that will run or resume.

    Returns:
        Remarks, such as how many rows of a source are kept.

    Raises:
        UserError: one line for each that cannot be read, cannot be found, or does not answer with numbers.
    """
    stages = [plan.stage for plan in plans if plan.starts]
    return run_preflight(config, stages) if stages else []


def check_feedback(config: Experiment, stage: Stage) -> None:
    """Check only the functions and endpoints of a stage, if it calls any; see `check_stages`."""
    if config.users_code([stage]):
        run_preflight(config, [stage], only_feedback=True)


def run_preflight(config: Experiment, stages: Sequence[Stage], *, only_feedback: bool = False) -> list[str]:
    """Run `stages.preflight` in a process of its own; see `check_stages`."""
    experiment = config.model_dump(mode="json")
    order = json.dumps({"experiment": experiment, "stages": stages, "only_feedback": only_feedback})
    command = [sys.executable, "-P", "-c", PREFLIGHT]
    try:
        done = subprocess.run(
            command, input=order, capture_output=True, text=True, errors="replace", timeout=MOST_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        names = _lines((error.stdout or b"").decode())
        raise UserError(f"{names[-1]} gave no answer in {MOST_SECONDS} seconds.") from None
    lines = _lines(done.stdout)
    results = lines[1::2]
    faults = [fault for fault, _ in results if fault]
    if len(lines) % 2:
        whole = os.environ.get("TRISTAGE_DEBUG")  # see stages/feedback/user_functions.py
        output = f"\n{done.stderr}" if whole else " ".join(done.stderr.split())[-LONGEST:]
        faults.append(f"{lines[-1]} ended its process with status {done.returncode}. {output}".rstrip())
    elif done.returncode:
        raise RuntimeError(done.stderr)
    if faults:
        raise UserError("\n".join(dict.fromkeys(faults)))
    return [remark for _, remarks in results for remark in remarks]


def _lines(text: str) -> list[Any]:
    """The names and results of checks in turn."""
    return [json.loads(line) for line in text.splitlines()]
