"""The sampler: every example once per epoch, the same batches at any number of ranks, and no state."""

import random
from itertools import pairwise

import pytest

from data.batches.sampler import Lengths, epoch_order, global_batch, grouped_order, micro_batches, rank_share


def test_orders_are_permutations_that_differ_by_epoch_and_seed():
    orders = [epoch_order(50, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(orders)) == 4


def test_the_order_of_a_seed_is_pinned():
    assert epoch_order(8, 0, 0) == (0, 2, 1, 4, 6, 7, 3, 5)


def test_batches_cut_the_epochs_without_a_gap():
    # 5 examples in batches of 3: steps 0 to 4 read 15 positions, which are three epochs
    indices = [index for step in range(5) for index in global_batch(5, 3, seed=7, step=step)]
    assert indices == [*epoch_order(5, 7, 0), *epoch_order(5, 7, 1), *epoch_order(5, 7, 2)]


def test_batch_may_be_larger_than_the_data():
    assert global_batch(2, 5, 0, 0) == [*epoch_order(2, 0, 0), *epoch_order(2, 0, 1), epoch_order(2, 0, 2)[0]]


@pytest.mark.parametrize(("size", "batch_size"), [(1000, 8), (1003, 8), (5, 8), (8, 8), (17, 4)])
def test_grouped_batches_take_every_example_once_an_epoch(size, batch_size):
    lengths = Lengths([number * 7 % 101 for number in range(size)])
    steps = range(-(-3 * size // batch_size))
    taken = [i for step in steps for i in global_batch(size, batch_size, 7, step, lengths)]
    for epoch in range(3):
        assert sorted(taken[epoch * size : (epoch + 1) * size]) == list(range(size))
        assert grouped_order(lengths, batch_size, 7, epoch) == tuple(taken[epoch * size : (epoch + 1) * size])


def test_grouped_batches_have_lengths_alike_and_no_trend():
    """Of random lengths up to 1000, a megabatch of 400 sorts those of a batch into a range of about 20."""
    lengths = Lengths([random.Random(number).randrange(1000) for number in range(4003)])
    ranges, means = [], []
    for step in range(1000):  # two epochs, the second of which begins within a batch
        batch = [lengths.of[i] for i in global_batch(4003, 8, 1, step, lengths)]
        ranges.append(max(batch) - min(batch))
        means.append(sum(batch) / 8)
    assert sum(ranges) / 1000 < 40 and sorted(ranges)[-4] < 150
    half = 500
    assert abs(sum(means[:half]) - sum(means[half:])) / half < 60  # 4 deviations of a mean over 500 batches
    assert sum(a < b for a, b in pairwise(means)) in range(430, 570)


def test_grouping_depends_on_seed_and_epoch_only():
    lengths = Lengths(list(range(64)))
    orders = [grouped_order(lengths, 4, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert grouped_order(Lengths(list(range(64))), 4, 0, 1) == orders[1]


def test_no_examples_is_an_error():
    with pytest.raises(ValueError, match="no examples"):
        global_batch(0, 4, 0, 0)


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_shares_make_up_the_batch_at_any_number_of_ranks(world):
    batch = global_batch(100, 8, 0, 3)
    shares = [rank_share(batch, rank, world) for rank in range(world)]
    assert {len(share) for share in shares} == {8 // world}
    assert [index for share in shares for index in share] == batch


def test_unequal_shares_are_refused():
    with pytest.raises(ValueError, match="6 cannot be shared equally by 4"):
        rank_share([0] * 6, 0, 4)


def test_micro_batches():
    assert micro_batches("abcde", 2) == [["a", "b"], ["c", "d"], ["e"]]
    assert micro_batches([], 2) == []
