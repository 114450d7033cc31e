"""The report of a reward model, `rm/evaluation.json`, as tables: what W&B shows of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Rows(NamedTuple):
    """A table."""

    columns: list[str]
    data: list[list[Any]]


def reward_tables(report: Mapping[str, Any]) -> dict[str, Rows]:
    """Accuracies with 95 % intervals over n prompts, the reliability curve, and the surest mistakes."""
    figures = [
        [name, *(one[key] for key in ("value", "low", "high", "n"))] for name, one in _accuracies(report)
    ]
    mistakes = [[one["prompt"], one["better"], one["worse"], one["margin"]] for one in report["mistakes"]]
    bins = report["calibration"]["bins"]
    return {
        "accuracy": Rows(["pairs", "accuracy", "low", "high", "n"], figures),
        "reliability": Rows(
            ["confidence", "accuracy", "share of pairs"],
            [[one["confidence"], one["accuracy"], one["weight"]] for one in bins],
        ),
        "mistakes": Rows(["prompt", "better by the labels", "better by the model", "margin"], mistakes),
    }


def _accuracies(report: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, float]]]:
    yield "all", report["accuracy"]
    for name, of in report["groups"].items():
        for part, one in of.items():
            yield f"{name}: {part}", one
    for name, one in report["baselines"].items():
        yield f"simple rule: {name}", one
