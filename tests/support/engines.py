"""Engines inside the test process, and the gradients of their optimizer steps."""

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
    """What `step` returns, and the gradients of its optimizer step by parameter name."""
    gradients: dict[str, Tensor] = {}

    def copy_gradients(*_: Any) -> None:
        for name, parameter in engine.parameters.items():
            assert parameter.grad is not None, name
            gradients[name] = parameter.grad.detach().clone()

    hook = engine.optimizer.register_step_pre_hook(copy_gradients)
    result = step()
    hook.remove()
    return result, gradients


def assert_same_gradients(
    actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], rtol: float = 1e-5
) -> None:
    """For each tensor, gradients are equal to rounding: |actual - expected| <= rtol * |expected|, by norm.

    Single elements may differ by more: if the terms of a sum nearly cancel, their order decides the result.
    """
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        error, size = (actual[name] - gradient).norm(), gradient.norm()
        assert size > 0, f"{name}: the gradient is zero, the comparison says nothing"
        assert error <= rtol * size, f"{name}: off by {error / size:.1e}"
