"""The share of padding in what a model computes on, and what it would be without grouping or packing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from configs.schema import Epochs
from data.batches.sampler import Lengths, global_batch, micro_batches, rank_share
from stages.maths.statistics import Mean

Item = TypeVar("Item")
Rows = list[tuple[int, int]]  # tokens on each side of where the rows of a batch are aligned


def padding(batch: Sequence[Item], micro: int, world: int, rows_of: Callable[[Item], Rows]) -> Mean:
    """The share of padding in the forwards of one global batch, over all ranks.

    Args:
        micro: examples in one forward.
        rows_of: the rows that an example takes in a forward.
    """
    tokens = positions = 0
    for rank in range(world):
        for part in micro_batches(rank_share(batch, rank, world), micro):
            rows = [row for example in part for row in rows_of(example)]
            tokens += sum(map(sum, rows))
            positions += len(rows) * sum(map(max, zip(*rows, strict=True)))
    return Mean(positions - tokens, positions)


def padding_metrics(
    training: Epochs,
    seed: int,
    examples: Sequence[Item],
    plain: Sequence[Item],
    lengths: Lengths | None,
    padding_of: Callable[[Sequence[Item]], Mean],
) -> dict[str, float]:
    """The share of padding in the first epoch, and what it would be without grouping or packing.

    Args:
        examples: what the stage trains on.
        plain: the same examples before they were packed.
        lengths: of the examples, if batches are grouped by them.
        padding_of: the padding of one global batch.
    """

    def epoch(some: Sequence[Item], of: Lengths | None) -> float:
        total, size = Mean(0, 0), training.batch_size
        for step in range(-(-len(some) // size)):
            total += padding_of([some[i] for i in global_batch(len(some), size, seed, step, of)])
        return total.value

    found = {"padding": epoch(examples, lengths)}
    return found if lengths is None and plain is examples else found | {"padding_plain": epoch(plain, None)}
