"""Short ways to write tensors, for tests of the maths."""

from __future__ import annotations

import math

import torch

NAN = math.nan


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def boolean(rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def gradient(loss: torch.Tensor, values: torch.Tensor) -> list:
    return torch.autograd.grad(loss, values)[0].tolist()
