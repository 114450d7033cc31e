"""Chance that a seed decides: numbers by which prompts are split, and people get tasks."""

from __future__ import annotations

import hashlib


def unit(seed: int, purpose: str, key: str) -> float:
    """A pseudo-random number in [0, 1) that depends only on the arguments."""
    digest = hashlib.sha256(f"{seed}\n{purpose}\n{key}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48
