"""The engine reads and writes whole parameters at each ZeRO stage. See engine_checks.py for two ranks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stages.distributed.ranks import Ranks
from stages.distributed.zero3 import whole, whole_for_writing
from stages.internals.deepspeed import is_partitioned, whole_shape
from tests.support.engine_checks import ZERO_STAGES, check_parameters_are_replaced, trainer_at


@pytest.fixture(autouse=True)
def local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")  # DeepSpeed asks for it


@pytest.mark.parametrize("zero", ZERO_STAGES)
def test_replaced_parameters_are_read_back(zero: int, ranks: Ranks) -> None:
    check_parameters_are_replaced(zero, ranks)


@pytest.mark.parametrize("zero", ZERO_STAGES)
def test_shapes_are_those_of_whole_parameters(zero: int, ranks: Ranks) -> None:
    parameters = trainer_at(zero, ranks).engine.parameters
    assert {is_partitioned(parameter) for parameter in parameters.values()} == {zero == 3}
    shapes = {
        name: (whole_shape(parameter) if is_partitioned(parameter) else parameter.shape)
        for name, parameter in parameters.items()
    }
    with whole(*parameters.values()):
        assert shapes == {name: parameter.shape for name, parameter in parameters.items()}


def test_without_zero3_nothing_is_gathered() -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    with whole(weight, None):
        assert weight.tolist() == [[1.0] * 3] * 2
    with torch.no_grad(), whole_for_writing(weight):
        weight.zero_()
    assert not weight.any()
