"""Average and last good policy, on an engine with one number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from stages.rl.policy_snapshots import LastGoodPolicy, PolicyAverage
from stages.training.engine import Engine


class Number:
    """The part of an engine that snapshots use."""

    def __init__(self, value: float) -> None:
        self.value = torch.tensor(value)

    def role_tensors(self, role: str) -> dict[str, Tensor]:
        assert role == "policy"
        return {"w": self.value.clone()}

    def set_parameters(self, tensors: Mapping[str, Tensor]) -> None:
        self.value = tensors["w"].clone()


def engine(value: float) -> Any:
    return cast(Engine, Number(value))


def test_average_by_hand() -> None:
    policy = engine(1.0)
    average = PolicyAverage(policy, 0.75)
    average.update()
    assert average.tensors["w"].item() == 1.0  # the first policy
    policy.value = torch.tensor(5.0)
    average.update()
    assert average.tensors["w"].item() == 0.75 * 1.0 + 0.25 * 5.0


def test_a_resumed_average_continues() -> None:
    policy = engine(1.0)
    average, resumed = PolicyAverage(policy, 0.5), PolicyAverage(policy, 0.5)
    average.update()
    resumed.load_state_dict(average.state_dict())
    policy.value = torch.tensor(3.0)
    for one in (average, resumed):
        one.update()
    assert resumed.tensors["w"].item() == average.tensors["w"].item() == 2.0


def test_policy_and_average_go_back_together_also_after_a_restart() -> None:
    policy = engine(1.0)
    average = PolicyAverage(policy, 0.5)
    good = LastGoodPolicy(policy, average)
    average.update()
    policy.value = torch.tensor(3.0)
    average.update()
    good.remember()  # policy 3, average 2
    resumed = LastGoodPolicy(policy, average)
    resumed.load_state_dict(good.state_dict())
    policy.value = torch.tensor(100.0)
    average.update()
    resumed.restore()
    assert policy.value.item() == 3.0 and average.tensors["w"].item() == 2.0


def test_before_the_first_update_the_average_is_the_policy() -> None:
    policy = engine(1.0)
    average = PolicyAverage(policy, 0.5)
    good = LastGoodPolicy(policy, average)
    good.remember()
    policy.value = torch.tensor(100.0)
    average.update()
    good.restore()
    assert policy.value.item() == 1.0 and average.tensors["w"].item() == 1.0
