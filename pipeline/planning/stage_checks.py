"""Has `stages.preflight` try what the stages will read and call, before any of them has trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from configs.error_messages import Keys, overlap
from configs.schema import Experiment, Stage
from pipeline.planning.batches import check_batches
from pipeline.planning.faults import Faults
from pipeline.planning.plan import StagePlan
from pipeline.planning.preflight import file_faults

ROOT = Path(__file__).resolve().parents[2]  # first on the path of a stage's process, too
# What libraries and the user's code print goes to stderr, from their import on. Results have their own pipe.
PREFLIGHT = (
    f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); results = os.dup(1); os.dup2(2, 1); "
    "from stages.preflight import main; main(results)"
)
MOST_SECONDS = 600  # to import a function's libraries, and to load its models
LONGEST = 300  # characters of what a process said at its end


def check_all(
    config: Experiment,
    plans: Sequence[StagePlan],
    world: int,
    faults: Faults,
    wrong: frozenset[Keys] = frozenset(),
) -> list[str]:
    """Check all that the stages which will run or resume read, call and share among `world` ranks.

    A blocked stage is checked, too: it runs once it is no longer blocked.

    Args:
        faults: receives what is wrong.
        wrong: keys with a fault of their own. What they say is not checked.

    Returns:
        Remarks, such as how many rows of a source are kept.
    """
    plans = [replace(plan, action="run") if plan.action == "blocked" else plan for plan in plans]
    stages = [plan.stage for plan in plans if plan.starts]
    for fault in file_faults(config, plans):
        if not any(overlap(fault.keys, keys) for keys in wrong):
            faults.add("files", fault.text)
            wrong |= {fault.keys}
    for stage in stages:
        if not any(keys[:1] == (stage,) for keys in wrong):
            with faults.of("machine"):
                check_batches(config, stage, world)
    return run_preflight(config, stages, faults, wrong) if stages else []


def check_feedback(config: Experiment, stage: Stage) -> None:
    """Check only the functions and endpoints of a stage, if it calls any.

    Raises:
        UserError: one line for each that does not answer with numbers.
    """
    if config.users_code([stage]):
        faults = Faults()
        run_preflight(config, [stage], faults, only_feedback=True)
        faults.refuse()


def run_preflight(
    config: Experiment,
    stages: Sequence[Stage],
    faults: Faults,
    wrong: frozenset[Keys] = frozenset(),
    *,
    only_feedback: bool = False,
) -> list[str]:
    """Run `stages.preflight` in a process of its own, and another one for what is left if a check ends it.

    Returns:
        Remarks, such as how many rows of a source are kept.
    """
    order = {
        "experiment": config.model_dump(mode="json"),
        "stages": stages,
        "only_feedback": only_feedback,
        "wrong": sorted(wrong),
    }
    remarks, done, ended = list[str](), 0, True
    while ended:
        output, end = _run_checks(json.dumps(order | {"done": done}))
        lines = [json.loads(line) for line in output.splitlines()]
        for (group, _), (fault, said) in zip(lines[::2], lines[1::2], strict=False):
            if fault:
                faults.add(group, fault)
            remarks += said
        if ended := len(lines) % 2 == 1:  # the last check has not answered
            group, name = lines[-1]
            faults.add(group, f"{name} {end}")
        done += (len(lines) + 1) // 2
    return remarks


def ask_preflight(order: str) -> subprocess.CompletedProcess[str]:
    """Have a process of its own make the checks of `order`; see `stages.preflight.main`."""
    command = [sys.executable, "-P", "-c", PREFLIGHT]
    return subprocess.run(
        command, input=order, capture_output=True, text=True, errors="replace", timeout=MOST_SECONDS
    )


def _run_checks(order: str) -> tuple[str, str]:
    """The lines of one process, and how it ended, as the sentence about its last check has it."""
    try:
        done = ask_preflight(order)
    except subprocess.TimeoutExpired as error:
        return (error.stdout or b"").decode(), f"gave no answer in {MOST_SECONDS} seconds."
    if done.returncode and len(done.stdout.splitlines()) % 2 == 0:
        raise RuntimeError(done.stderr)
    whole = os.environ.get("TRISTAGE_DEBUG")  # see stages/feedback/user_functions.py
    said = f"\n{done.stderr}" if whole else " ".join(done.stderr.split())[-LONGEST:]
    return done.stdout, f"ended its process with status {done.returncode}. {said}".rstrip()
