"""Whether training worked: updates were made, and weights and held-out metrics are finite numbers."""

from __future__ import annotations

from collections.abc import Mapping

from configs.errors import UserError
from configs.schema import Stage
from stages.context import not_finite
from stages.training.engine import Engine


def check_start(stage: Stage, evaluation: Mapping[str, float]) -> None:
    """Check the evaluation before the first step.

    Raises:
        UserError: a metric is not finite, so every gradient would be as well.
    """
    if names := not_finite(evaluation):
        raise UserError(
            f"stage {stage}: {names} of held-out data is not a finite number before the first step. Weights "
            "of the base or of an upstream adapter are not finite, or they overflow. Look at base.model, set "
            "base.compute_dtype to float32, or train the stage before again."
        )


def check_result(stage: Stage, engine: Engine, steps: int, evaluation: Mapping[str, float]) -> None:
    """Check what training left. Every rank must call.

    Args:
        steps: of the whole stage. With 0, nothing was to be trained.
        evaluation: of the result; empty if nothing is held out.

    Raises:
        UserError: updates were skipped (or never made), or a weight or a metric is not finite.
    """
    counters, weights = engine.counters, engine.not_finite()
    if steps and not counters.applied:
        fault = f"none of {counters.steps} updates was made"
    elif steps and 2 * counters.skipped >= counters.steps:
        fault = f"{counters.skipped} of {counters.steps} updates had no finite gradient and were skipped"
    elif weights:
        fault = f"{len(weights)} trained weights are not finite, such as {weights[0]}"
    elif names := not_finite(evaluation):
        fault = f"{names} of held-out data is not a finite number"
    else:
        return
    raise UserError(
        f"stage {stage}: {fault}, so it has no result. Lower {stage}.learning_rate or {stage}.weight_decay, "
        "or set base.compute_dtype to float32; the log names metrics and examples of skipped updates. Then "
        "start over with --fresh."
    )
