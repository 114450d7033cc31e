"""Ask every function and endpoint of an experiment about two answers, before anything is trained.

It runs in a process of its own, which the user's code may end, and whose memory is free again afterwards. It
reads `{"experiment": ..., "stages": [...]}` and writes one JSON line for each source: its name before it is
asked, and its fault or null after that.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence

from configs.errors import UserError
from configs.schema import Experiment, Reward, Stage
from stages.feedback.reward_endpoint import Endpoint
from stages.feedback.user_functions import load_function

PROMPTS = ["How are you?", "Name a colour."]
COMPLETIONS = ["I am well, thank you.", ""]  # a policy may end its turn at once


def main() -> None:
    """What the user's code prints does not mix with the lines of this process."""
    with os.fdopen(os.dup(1), "w") as lines:
        os.dup2(2, 1)
        order = json.load(sys.stdin)
        for source, ask in sources(Experiment.model_validate(order["experiment"]), order["stages"]):
            print(json.dumps(source), file=lines, flush=True)
            try:
                ask()
                fault = None
            except UserError as error:
                fault = str(error)
            print(json.dumps(fault), file=lines, flush=True)


def sources(config: Experiment, stages: Sequence[Stage]) -> Iterator[tuple[str, Callable[[], object]]]:
    """Name and question of each function and endpoint that the stages ask."""
    functions = {}
    if "rm" in stages:
        functions["rm.rankings.labeller"] = config.rm.rankings.labeller
    if "ppo" in stages or "best" in stages:
        functions["ppo.judge"] = config.ppo.judge or ""
    for key, path in functions.items():
        if ":" in path:  # otherwise it ships, or is none
            yield f"{key}: {path}", _function(path, key)
    for term in config.ppo.rewards if "ppo" in stages else ():
        if "://" in term.source:
            yield f"ppo.rewards: {term.source}", _endpoint(term)
        elif ":" in term.source:
            yield f"ppo.rewards: {term.source}", _function(term.source, "ppo.rewards")


def _function(path: str, key: str) -> Callable[[], object]:
    return lambda: load_function(path, key)(PROMPTS, COMPLETIONS)


def _endpoint(term: Reward) -> Callable[[], object]:
    return lambda: Endpoint(term.model_copy(update={"retries": 0}))(PROMPTS, COMPLETIONS)
