"""Checks that functions and endpoints of the user's answer, before any stage has trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.errors import UserError
from configs.schema import Experiment
from pipeline.planning.plan import StagePlan

ROOT = Path(__file__).resolve().parents[2]  # first on the path of a stage's process, too
PROBE = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from stages.feedback.probe import main; main()"
MOST_SECONDS = 600  # to import a function's libraries, and to load its models
LONGEST = 300  # characters of what a process said at its end


def check_feedback(config: Experiment, plans: Sequence[StagePlan]) -> None:
    """Ask the labeller, the judge and the rewards of the stages that will run or resume about two answers.

    Raises:
        UserError: one line for each that cannot be found, fails, or does not give finite numbers.
    """
    stages = [plan.stage for plan in plans if plan.action in ("run", "resume")]
    if not _asks(config, stages):
        return
    order = json.dumps({"experiment": config.model_dump(mode="json"), "stages": stages})
    command = [sys.executable, "-P", "-c", PROBE]
    try:
        done = subprocess.run(
            command, input=order, capture_output=True, text=True, errors="replace", timeout=MOST_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        asked = _lines((error.stdout or b"").decode())
        raise UserError(f"{asked[-1]} gave no answer in {MOST_SECONDS} seconds.") from None
    lines = _lines(done.stdout)
    faults = [fault for fault in lines[1::2] if fault]
    if len(lines) % 2:
        whole = os.environ.get("TRISTAGE_DEBUG")  # see stages/feedback/user_functions.py
        said = f"\n{done.stderr}" if whole else " ".join(done.stderr.split())[-LONGEST:]
        faults.append(f"{lines[-1]} ended its process with status {done.returncode}. {said}".rstrip())
    elif done.returncode:
        raise RuntimeError(done.stderr)
    if faults:
        raise UserError("\n".join(faults))


def _asks(config: Experiment, stages: Sequence[str]) -> bool:
    """Whether one of the stages asks the user's own code. The names that ship have no colon."""
    judged, ranked = "ppo" in stages or "best" in stages, "rm" in stages
    names = [config.ppo.judge or ""] if judged else []
    names += [config.rm.rankings.labeller] if ranked else []
    names += [term.source for term in config.ppo.rewards] if "ppo" in stages else []
    return any(":" in name for name in names)


def _lines(text: str) -> list[str | None]:
    """Names of sources and their faults in turn, as the probe wrote them."""
    return [json.loads(line) for line in text.splitlines()]
