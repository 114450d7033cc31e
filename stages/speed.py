"""Where an iteration's time goes, and which share of the machine's arithmetic it makes use of."""

from __future__ import annotations

import time

import torch
from transformers import PretrainedConfig
from trl.trainer.utils import compute_flops_per_token


class Stopwatch:
    """Seconds from one lap to the next."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        before, self._last = self._last, time.perf_counter()
        return self._last - before


def forward_flops(config: PretrainedConfig, tokens: int, length: float) -> float | None:
    """Operations of a forward over `tokens` in all, in sequences of `length`; None of an unknown layout."""
    try:
        return (
            tokens * compute_flops_per_token(config.get_text_config(), round(length)) / 3
        )  # backward: 2 more
    except AttributeError:  # a config that does not call its sizes by the usual names
        return None


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product, measured here and now: the best of three."""
    size = 1024 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(4):
        watch = Stopwatch()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(watch.lap())
    return 2 * size**3 / min(seconds[1:])  # the first warms up
