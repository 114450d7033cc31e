"""How fast a stage runs, in how much memory, and which share of the machine's arithmetic it uses."""

from __future__ import annotations

import resource
import sys
import time

import torch
from transformers import PretrainedConfig

from stages.distributed.ranks import Ranks
from stages.internals.trl import compute_flops_per_token


def peak_memory_bytes() -> int:
    """Peak memory of this process in bytes: on the GPU if there is one, else resident."""
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


def cost(meter: Meter, ranks: Ranks, steps: float) -> dict[str, float]:
    """What the metrics of every stage end with. Every rank must call."""
    return {
        "steps": steps,
        "tokens_per_second": meter.tokens_per_second,
        "peak_memory_bytes": ranks.max(peak_memory_bytes()),
    }


class Stopwatch:
    """Seconds from one lap to the next."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        before, self._last = self._last, time.perf_counter()
        return self._last - before


def forward_flops(config: PretrainedConfig, tokens: int, length: float) -> float | None:
    """Operations of a forward over `tokens` in sequences of `length`; None for an unknown model layout."""
    try:
        return (
            tokens * compute_flops_per_token(config.get_text_config(), round(length)) / 3
        )  # backward: 2 more
    except AttributeError:  # a config that does not call its sizes by the usual names
        return None


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product on this machine: the best of three."""
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
