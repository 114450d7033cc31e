"""The ranks of a job: which items each rank handles, and collectives between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

import torch
from torch import Tensor

from data.batches.sampler import rank_share
from stages.internals.torch import default_store

Item = TypeVar("Item")
Result = TypeVar("Result")
SECONDS_BETWEEN_POLLS = 0.05


@dataclass(frozen=True)
class Round:
    """A batch of items of one rank. `weight` is 0 if the batch only keeps the rank in step with others."""

    items: list[Any]
    weight: int


@dataclass(frozen=True)
class Ranks:
    """This process: its `rank` among `world` ranks, and the `device` that it computes on."""

    rank: int
    world: int
    device: torch.device
    _late: Iterator[int] = field(default_factory=count, repr=False, compare=False)  # numbers `from_rank_0`

    def share(self, items: list[Any]) -> list[Any]:
        """This rank's contiguous share of `items`. `world` must divide their number."""
        return rank_share(items, self.rank, self.world)

    def rounds(self, items: list[Any], size: int) -> list[Round]:
        """This rank's items in rounds of at most `size`. Every rank has the same number of rounds.

        Under ZeRO-3, all ranks must take part in every forward. A rank without items left repeats the last
        item with weight 0.
        """
        count = -(-len(items) // (size * self.world))
        rounds = []
        for first in range(0, count * size * self.world, size * self.world):
            share = items[first : first + size * self.world][self.rank :: self.world]
            rounds.append(Round(share, 1) if share else Round(items[-1:], 0))
        return rounds

    def map_in_order(
        self, items: Sequence[Item], size: int, function: Callable[[list[Item]], Sequence[Result]]
    ) -> list[Result]:
        """Share the work among ranks, `size` items at once on a rank. Every rank must call.

        Args:
            function: from a batch of items to one result each. It runs equally often on every rank.

        Returns:
            The results of all items in the order of `items`, on every rank.
        """
        numbered: list[tuple[int, Result]] = []
        for round_ in self.rounds(list(range(len(items))), size):
            results = function([items[i] for i in round_.items])
            numbered += list(zip(round_.items, results, strict=True)) * round_.weight
        return [result for _, result in sorted(self.gather(numbered), key=lambda pair: pair[0])]

    def sum(self, values: Mapping[str, Tensor | float]) -> dict[str, float]:
        """The sum of each value over ranks, in float64. Every rank must call."""
        total = torch.tensor([float(value) for value in values.values()], dtype=torch.float64)
        total = total.to(self.device)
        if self.world > 1:
            torch.distributed.all_reduce(total)
        return dict(zip(values, total.tolist(), strict=True))

    def max(self, value: int) -> int:
        """The largest value of all ranks. Every rank must call."""
        if self.world == 1:
            return value
        largest = torch.tensor(value, device=self.device)
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        return int(largest)

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all ranks, in order of rank. Every rank must call."""
        if self.world == 1:
            return items
        parts: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(parts, items)
        return [item for part in parts for item in part]

    def broadcast(self, item: Any) -> Any:
        """Rank 0's item, on every rank. The items of other ranks are ignored. Every rank must call."""
        if self.world == 1:
            return item
        items = [item]
        torch.distributed.broadcast_object_list(items, src=0)
        return items[0]

    def from_rank_0(self, make: Callable[[], Result]) -> Result:
        """What rank 0 makes, on every rank, however long it takes: the others wait in no collective.

        Every rank must call.
        """
        if self.world == 1:
            return make()
        item, made = None, f"from_rank_0/{next(self._late)}"
        if self.rank == 0:
            item = make()
            default_store().set(made, "")
        while not default_store().check([made]):
            time.sleep(SECONDS_BETWEEN_POLLS)
        result: Result = self.broadcast(item)
        return result

    def barrier(self) -> None:
        """Wait until every rank has called."""
        if self.world > 1:
            torch.distributed.barrier()
