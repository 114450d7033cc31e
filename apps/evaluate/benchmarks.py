"""Benchmarks that people quote, by lm-eval (Gao et al. 2021): each policy as it is, on the quantized base."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.evaluate.candidates import Candidate
from apps.trained_run import LoadedPolicies
from configs.errors import UserError

AT_ONCE = 8  # requests in a forward
NORMAL_95 = 1.96
Metrics = dict[str, float]


@dataclass(frozen=True)
class Benchmarks:
    """What lm-eval asks.

    Attributes:
        tasks: names of its tasks, groups or tags.
        folder: of YAML files with tasks of the user's own; None for those that ship with lm-eval.
        number: the most examples of each task; None for all.
        chat: whether the chat template is applied.
    """

    tasks: Sequence[str]
    folder: Path | None
    number: int | None
    chat: bool


def load_tasks(wanted: Benchmarks) -> Mapping[str, Any]:
    """The tasks with their data, as lm-eval loads them. Data that is not here comes from the hub.

    Raises:
        UserError: a task is unknown, or its data cannot be loaded.
    """
    from lm_eval.tasks import TaskManager  # an extra, and it takes seconds to import

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if wanted.folder is not None and not wanted.folder.is_dir():
        raise UserError(
            f"--benchmarks-folder: {wanted.folder!s:.200}: there is no such folder. Correct the path."
        )
    manager = TaskManager(include_path=str(wanted.folder) if wanted.folder else None)
    known = set(manager.all_tasks)
    for name in wanted.tasks:
        if name not in known:
            raise UserError(
                f"--benchmarks: {name!r:.100}: lm-eval has no task, group or tag of this name. `lm-eval ls "
                "tasks` lists them; --benchmarks-folder names a folder with YAML files of your own."
            )
    try:
        loaded: Mapping[str, Any] = manager.load(list(wanted.tasks))
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"--benchmarks: {', '.join(wanted.tasks)!s:.100} cannot be loaded: {type(error).__name__}: "
            f"{reason:.300}. Most tasks read data of the hub. Load it once with a network, or write a task "
            "that reads a file."
        ) from error
    return loaded


def run_benchmarks(
    policies: LoadedPolicies,
    candidates: Sequence[Candidate],
    wanted: Benchmarks,
    say: Callable[[str], None],
) -> dict[str, dict[str, Metrics]]:
    """Of each task and metric, such as "hellaswag, acc_norm", `score` of each candidate that is a policy.

    The interval is the mean and 1.96 standard errors, as lm-eval computes them.

    Raises:
        UserError: see `load_tasks`.
    """
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    table: dict[str, dict[str, Metrics]] = {}
    for candidate in candidates:
        if candidate.in_context or candidate.samples > 1:
            continue
        say(f"{candidate.name}: {', '.join(wanted.tasks)} by lm-eval")
        policies.base.activate(policies.roles[candidate.policy])
        model = HFLM(pretrained=policies.base.causal, tokenizer=policies.tokenizer, batch_size=AT_ONCE)
        results = evaluator.evaluate(
            lm=model,
            task_dict=load_tasks(wanted),
            limit=wanted.number,
            log_samples=False,
            apply_chat_template=wanted.chat,
        )
        for row, metrics in _figures(results).items():
            table.setdefault(row, {})[candidate.name] = metrics
    return table


def _figures(results: Mapping[str, Any]) -> dict[str, Metrics]:
    """The numbers in lm-eval's results, which are under keys such as `acc_norm,none`."""
    figures: dict[str, Metrics] = {}
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, _, filtered = key.partition(",")
            if not isinstance(value, (int, float)) or metric.endswith("_stderr") or not filtered:
                continue
            row = f"{task}, {metric}" + (f" ({filtered})" if filtered != "none" else "")
            figures[row] = {"score": float(value)}
            error = values.get(f"{metric}_stderr,{filtered}")
            if isinstance(error, (int, float)):
                half = NORMAL_95 * float(error)
                figures[row] |= {"score_low": value - half, "score_high": value + half}
            if task in results["n-samples"]:
                figures[row]["score_n"] = results["n-samples"][task]["effective"]
    return figures
