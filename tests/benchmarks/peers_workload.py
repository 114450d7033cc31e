"""The data that both sides of a comparison train on, and the timing of their steps."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Seconds = list[float]


def sequences(arguments: argparse.Namespace, count: int) -> Iterator[list[int]]:
    """Token ids of `count` responses, from half the longest length to all of it."""
    import random

    noise = random.Random(count)
    for _ in range(count):
        length = noise.randint(arguments.response // 2, arguments.response)
        yield [noise.randrange(100, 380) for _ in range(length)]


def prompt(arguments: argparse.Namespace, number: int) -> list[int]:
    import random

    noise = random.Random(f"prompt {number}")
    return [noise.randrange(100, 380) for _ in range(arguments.prompt)]


def timed(steps: int, step: Callable[[], Any]) -> Seconds:
    import torch

    seconds = []
    for _ in range(1 + steps):
        begin = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]
