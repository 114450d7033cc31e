"""Engines inside the test process, and the gradients that they step with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from configs.schema import DeepSpeed, Ppo, Training
from stages.distributed.ranks import Ranks
from stages.models.role_models import RoleModels
from stages.models.roles import Roles
from stages.training.engine import Engine
from tests.support.roles import models_of

ROOT = Path(__file__).resolve().parents[2]
ZERO_0 = DeepSpeed(config=str(ROOT / "configs" / "deepspeed" / "zero0.json"))


def engine_of(
    roles: Roles | RoleModels, rates: Mapping[str, float], ranks: Ranks, training: Training | Ppo
) -> Engine:
    """An engine at ZeRO 0 that trains the roles of `rates`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")  # DeepSpeed asks for it
        return Engine(
            models_of(roles) if isinstance(roles, Roles) else roles, rates, training, 10, ZERO_0, ranks
        )


def gradients_of(engine: Engine, step: Callable[[], Any]) -> tuple[Any, dict[str, Tensor]]:
    """What `step` returns, and the gradients that its optimizer step was taken with, by parameter name."""
    gradients: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        for name, parameter in engine.parameters.items():
            assert parameter.grad is not None, name
            gradients[name] = parameter.grad.detach().clone()

    hook = engine.optimizer.register_step_pre_hook(keep)
    result = step()
    hook.remove()
    return result, gradients


def assert_same_gradients(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], rtol: float = 1e-5
) -> None:
    """Every gradient is the same to rounding: |ours - theirs| <= rtol * |theirs|, by norm, for each tensor.

    By norm, because the order of a sum decides what is left of an element that nearly cancels.
    """
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        error, size = (ours[name] - expected).norm(), expected.norm()
        assert size > 0, f"{name}: the gradient is zero, the comparison says nothing"
        assert error <= rtol * size, f"{name}: off by {error / size:.1e}"
