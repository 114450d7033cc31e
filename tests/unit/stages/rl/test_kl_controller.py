"""The coefficient of the KL penalty: fixed, adaptive by hand, and the same after a restart."""

from __future__ import annotations

import math

import pytest

from configs.schema import Ppo
from stages.rl.kl_controller import KlController
from stages.training.checkpoint import State

ADAPTIVE = Ppo(kl_coef=0.05, kl_target=6, kl_horizon=40, batch_size=8)


def test_a_fixed_coefficient_stays() -> None:
    controller = KlController(Ppo(kl_coef=0.1))
    controller.update(kl=50.0, responses=8)
    assert controller.coef == 0.1


@pytest.mark.parametrize(("kl", "error"), [(0.0, -0.2), (6.6, 0.1), (100.0, 0.2)])
def test_an_adaptive_coefficient_by_hand(kl: float, error: float) -> None:
    controller = KlController(ADAPTIVE)
    controller.update(kl, responses=8)
    assert controller.coef == pytest.approx(0.05 * (1 + error * 8 / 40))


def test_a_kl_that_is_not_finite_moves_nothing() -> None:
    controller = KlController(ADAPTIVE)
    controller.update(math.nan, responses=8)
    assert controller.coef == 0.05


def test_a_resumed_controller_continues() -> None:
    controller, resumed = KlController(ADAPTIVE), KlController(ADAPTIVE)
    controller.update(0.0, responses=8)
    resumed.load_state_dict(State(**vars(controller.state_dict())))
    for one in (controller, resumed):
        one.update(20.0, responses=8)
    assert resumed.coef == controller.coef != 0.05
