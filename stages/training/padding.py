"""The share of padding in what a model computes on, and what it would be without grouping or packing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from configs.schema import Epochs
from data.batches.sampler import Lengths, global_batch, micro_batches, rank_share
from stages.maths.statistics import Mean

Item = TypeVar("Item")
Rows = list[tuple[int, int]]  # tokens on each side of where the rows of a batch are aligned


def padding(forwards: Iterable[Sequence[Item]], rows_of: Callable[[Item], Rows]) -> Mean:
    """The share of padding in forwards, each of some items.

    Args:
        rows_of: the rows that an item takes in a forward.
    """
    tokens = positions = 0
    for items in forwards:
        rows = [row for item in items for row in rows_of(item)]
        tokens += sum(map(sum, rows))
        positions += len(rows) * sum(map(max, zip(*rows, strict=True)))
    return Mean(positions - tokens, positions)


def forwards_of(batch: Sequence[Item], micro: int, world: int) -> list[list[Item]]:
    """The forwards of one global batch on all ranks, of `micro` examples each."""
    return [part for rank in range(world) for part in micro_batches(rank_share(batch, rank, world), micro)]


@dataclass(frozen=True)
class Batching(Generic[Item]):
    """How a stage makes forwards of its examples.

    Attributes:
        examples: what the stage trains on.
        padding: that of the forwards of one global batch.
        lengths: of the examples, if batches are grouped by them.
    """

    examples: Sequence[Item]
    padding: Callable[[Sequence[Item]], Mean]
    lengths: Lengths | None = None


def padding_metrics(
    training: Epochs, seed: int, used: Batching[Any], plain: Batching[Any]
) -> dict[str, float]:
    """The share of padding in the first epoch, and without grouping or packing, if there is any."""

    def epoch(batching: Batching[Any]) -> float:
        total, size, examples = Mean(0, 0), training.batch_size, batching.examples
        for step in range(-(-len(examples) // size)):
            picks = global_batch(len(examples), size, seed, step, batching.lengths)
            total += batching.padding([examples[i] for i in picks])
        return total.value

    found = {"padding": epoch(used)}
    return found if used == plain else found | {"padding_plain": epoch(plain)}
