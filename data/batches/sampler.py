"""Which examples a step trains on: pure functions of seed and step, so that resuming needs no state.

The global batch of a step does not depend on the number of ranks. Each rank takes a share of it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, TypeVar

Item = TypeVar("Item")
MEGABATCH = 50  # batches whose examples are sorted together; as in transformers


@lru_cache(maxsize=128)  # two epochs of each of 64 reward models
def epoch_order(size: int, seed: int, epoch: int) -> tuple[int, ...]:
    """Random order of `size` examples in epoch `epoch`."""
    order = list(range(size))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return tuple(order)


@dataclass(frozen=True, eq=False)
class Lengths:
    """The length of each example. Two of them are equal if they are one object, so that they hash fast."""

    of: Sequence[int]


@lru_cache(maxsize=128)
def grouped_order(lengths: Lengths, batch_size: int, seed: int, epoch: int) -> tuple[int, ...]:
    """Random order of examples in epoch `epoch` in which those of one batch have about the same length.

    As in transformers' LengthGroupedSampler, `MEGABATCH` batches at a time of a random order are sorted by
    length and cut into batches. Here, the batches then come in random order, too: lengths have no trend. The
    first examples fill up the last batch of the epoch before, the last ones begin that of the next.
    """
    number = len(lengths.of)
    order = epoch_order(number, seed, epoch)
    begun = min(-epoch * number % batch_size, number)
    by_length = [
        example
        for some in micro_batches(order[begun:], MEGABATCH * batch_size)
        for example in sorted(some, key=lambda example: -lengths.of[example])
    ]
    whole = len(by_length) // batch_size * batch_size
    batches = micro_batches(by_length[:whole], batch_size)
    random.Random(f"batches/{seed}/{epoch}").shuffle(batches)
    return tuple(chain(order[:begun], *batches, by_length[whole:]))


def global_batch(
    size: int, batch_size: int, seed: int, step: int, lengths: Lengths | None = None
) -> list[int]:
    """Indices of the examples of step `step` (from 0), over all ranks.

    The orders of the epochs follow one another without a gap. A batch may hold the end of one epoch and the
    beginning of the next, so no example is dropped.

    Args:
        lengths: of each example, if batches are to have examples of about the same length.

    Raises:
        ValueError: `size` is 0.
    """
    if size < 1:
        raise ValueError("there are no examples to sample from")

    def example(position: int) -> int:
        epoch, place = divmod(position, size)
        if lengths is None:
            return epoch_order(size, seed, epoch)[place]
        return grouped_order(lengths, batch_size, seed, epoch)[place]

    return [example(position) for position in range(step * batch_size, (step + 1) * batch_size)]


def rank_share(batch: Sequence[Item], rank: int, world: int) -> list[Item]:
    """The contiguous share of `batch` of rank `rank`. All `world` ranks get shares of equal length.

    Raises:
        ValueError: `world` does not divide the length of the batch.
    """
    if len(batch) % world:
        raise ValueError(f"a batch of {len(batch)} cannot be shared equally by {world} ranks")
    share = len(batch) // world
    return list(batch[rank * share : (rank + 1) * share])


def micro_batches(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Cut `items` into lists of `size`. The last one may be shorter."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def total_steps(size: int, batch_size: int, epochs: float, max_steps: int | None) -> int:
    """Number of optimizer steps in `epochs` passes over `size` examples: at most `max_steps`, which may be 0.

    Without `max_steps`, at least 1.
    """
    steps = max(1, round(epochs * size / batch_size))
    return steps if max_steps is None else min(steps, max_steps)


def seed_from(*parts: Any) -> int:
    """A 63-bit seed that depends only on `parts`: (experiment seed, purpose, step, ...)."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
