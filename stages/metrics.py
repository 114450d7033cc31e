"""Figures about a run: what it measured, how sure that is, how fast and in how much memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch

RESAMPLES = 2000


def mean_with_interval(name: str, values: Sequence[float], seed: int = 0) -> dict[str, float]:
    """Mean and its 95 % percentile bootstrap interval (Efron 1979): `name`, `name_low`, `name_high`.

    Args:
        values: one for each prompt: several figures of one prompt are not independent, so they are
            averaged before they come here.
    """
    array = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(len(array), size=(RESAMPLES, len(array)))
    low, high = np.percentile(array[picks].mean(axis=1), [2.5, 97.5])
    return {name: float(array.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}


def peak_memory_bytes() -> int:
    """Most memory this process has held: of the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Meter:
    """Counts tokens against the clock."""

    def __init__(self) -> None:
        self.tokens = 0
        self._started = time.monotonic()

    def add(self, tokens: int) -> None:
        self.tokens += tokens

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(time.monotonic() - self._started, 1e-9)
