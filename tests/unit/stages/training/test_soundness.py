"""A stage has a result only if it made updates, and its weights and metrics are finite."""

from __future__ import annotations

import math
from typing import Any

import pytest

from configs.errors import UserError
from stages.context import not_finite
from stages.training.engine import Counters
from stages.training.soundness import check_result, check_start

STEPS = 10


class Trained:
    """Stands in for an engine after training."""

    def __init__(self, skipped: int = 0, steps: int = STEPS, weights: tuple[str, ...] = ()) -> None:
        self.counters = Counters(steps=steps, skipped=skipped)
        self.weights = list(weights)

    def not_finite(self) -> list[str]:
        return self.weights


@pytest.mark.parametrize(
    ("engine", "evaluation", "fault"),
    [
        (Trained(), {"loss": 1.0}, None),
        (Trained(), {}, None),
        (Trained(skipped=4), {"loss": 1.0}, None),
        (Trained(skipped=5), {"loss": 1.0}, "5 of 10 updates had no finite gradient"),
        (Trained(skipped=10), {"loss": 1.0}, "none of 10 updates was made"),
        (Trained(steps=0), {"score": 1.0}, "none of 0 updates was made"),
        (Trained(weights=("a", "b")), {"loss": 1.0}, "2 trained weights are not finite, such as a"),
        (Trained(), {"loss": 1.0, "margin": math.nan}, "margin of held-out data"),
        (Trained(), {"loss": -math.inf}, "loss of held-out data"),
    ],
)
def test_results(engine: Any, evaluation: dict[str, float], fault: str | None) -> None:
    if fault is None:
        check_result("rm", engine, 10, evaluation)
        return
    with pytest.raises(UserError, match=rf"stage rm: {fault}.*rm\.learning_rate"):
        check_result("rm", engine, 10, evaluation)


def test_the_start() -> None:
    check_start("ppo", {})
    check_start("ppo", {"score": 0.0})
    with pytest.raises(UserError, match=r"stage ppo: score of held-out data .* before the first step"):
        check_start("ppo", {"score": math.nan, "kl": 0.0})


def test_names_are_few_and_without_their_intervals() -> None:
    nan = math.nan
    assert not_finite({"a": 1.0, "b": nan, "b_low": nan, "b_high": nan}) == "b"
    assert not_finite({"a_low": nan, "a": 1.0}) == "a_low"
    assert not_finite(dict.fromkeys("abcde", nan)) == "a, b, c and 2 more"
    assert not_finite({}) == ""


def test_a_stage_without_steps() -> None:
    """max_steps: 0 has no updates to miss. Its weights and its evaluation are looked at all the same."""
    engine: Any = Trained(steps=0)
    check_result("sft", engine, 0, {"loss": 1.0})
    with pytest.raises(UserError, match="loss of held-out data"):
        check_result("sft", engine, 0, {"loss": math.nan})
    spoiled: Any = Trained(steps=0, weights=("a",))
    with pytest.raises(UserError, match="1 trained weights are not finite"):
        check_result("sft", spoiled, 0, {})
