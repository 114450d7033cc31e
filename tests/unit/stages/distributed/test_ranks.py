"""Work that ranks share: each rank's items, and the order of the results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages.distributed.ranks import Ranks
from tests.support.roles import CPU
from tests.support.runs import ROOT

ITEMS = list("abcdefg")


class Alone(Ranks):
    """One of several ranks. The others do not answer: `gather` returns its own items."""

    def gather(self, items: list[Any]) -> list[Any]:
        return items


def batches_of(rank: int, world: int, size: int, items: list[str]) -> tuple[list[str], list[list[str]]]:
    """The results of one rank, and the batches of its function's calls."""
    batches: list[list[str]] = []

    def upper(batch: list[str]) -> list[str]:
        batches.append(batch)
        return [item.upper() for item in batch]

    return Alone(rank, world, CPU).map_in_order(items, size, upper), batches


def test_batches_of_one_rank_by_hand() -> None:
    results, batches = batches_of(0, 1, 3, ITEMS)
    assert results == list("ABCDEFG")
    assert batches == [["a", "b", "c"], ["d", "e", "f"], ["g"]]


def test_batches_of_two_ranks_by_hand() -> None:
    """Rank 1 has no item in the last round. It repeats its last item and drops the result."""
    assert batches_of(0, 2, 3, ITEMS) == (list("ACEG"), [["a", "c", "e"], ["g"]])
    assert batches_of(1, 2, 3, ITEMS) == (list("BDF"), [["b", "d", "f"], ["g"]])


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 2, 10])
def test_every_item_is_handled_once_in_as_many_calls_on_every_rank(world: int, size: int) -> None:
    by_rank = [batches_of(rank, world, size, ITEMS) for rank in range(world)]
    assert sorted(result for results, _ in by_rank for result in results) == list("ABCDEFG")
    assert len({len(batches) for _, batches in by_rank}) == 1


def test_results_of_all_ranks_are_in_the_order_of_the_items() -> None:
    class Gathering(Ranks):
        """Answers with the items of both ranks, in order of rank."""

        def gather(self, items: list[Any]) -> list[Any]:
            items_of_rank_0 = [(i, f"{ITEMS[i]} of rank 0") for i in range(0, len(ITEMS), 2)]
            return items_of_rank_0 + items

    results = Gathering(1, 2, CPU).map_in_order(ITEMS, 1, lambda batch: [f"{i} of rank 1" for i in batch])
    assert results == [f"{item} of rank {i % 2}" for i, item in enumerate(ITEMS)]


def test_no_items_no_calls() -> None:
    assert batches_of(0, 2, 3, []) == ([], [])


def test_function_that_loses_a_result_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        Ranks(0, 1, CPU).map_in_order(ITEMS, 7, lambda batch: batch[1:])


RANK_OF_TWO = """
import sys, time
from datetime import timedelta
import torch
from stages.distributed.ranks import Ranks
from stages.internals.torch import set_timeout
rank, file = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
set_timeout(torch.distributed.group.WORLD, timedelta(seconds=2))
ranks, calls = Ranks(rank, 2, torch.device("cpu")), []
def late():
    calls.append(len(calls))
    time.sleep(3)
    return f"call {calls[-1]}"
print([ranks.from_rank_0(late) for _ in range(2)], calls)
torch.distributed.destroy_process_group()
"""


@pytest.mark.distributed
def test_rank_0_may_take_longer_than_a_collective(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK_OF_TWO, str(rank), str(tmp_path / "store")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert said == ["['call 0', 'call 1'] [0, 1]\n", "['call 0', 'call 1'] []\n"]
