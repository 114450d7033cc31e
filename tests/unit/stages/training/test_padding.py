"""The share of padding, by hand."""

from collections.abc import Sequence

from configs.schema import Epochs
from data.batches.sampler import Lengths
from stages.maths.statistics import Mean
from stages.training.padding import Batching, forwards_of, padding, padding_metrics


def row(length: int) -> list[tuple[int, int]]:
    return [(length, 0)]


def share(batch: Sequence[int], micro: int, world: int) -> float:
    return padding(forwards_of(batch, micro, world), row).value


def test_padding_of_a_batch() -> None:
    # forwards of 2: (5, 3) takes 10 positions, (4, 1) takes 8; 13 of the 18 are tokens
    assert share([5, 3, 4, 1], 2, 1) == 5 / 18
    # two ranks of one forward each: the same
    assert share([5, 3, 4, 1], 4, 2) == 5 / 18
    assert share([5, 3, 4, 1], 4, 1) == 7 / 20
    assert share([5, 3, 4, 1], 1, 1) == 0


def test_rows_that_are_aligned_where_the_answer_begins() -> None:
    # prompts of 3 and 1 tokens, answers of 1 and 4: each row takes 3 + 4 positions
    assert padding([[0]], lambda _: [(3, 1), (1, 4)]).value == 5 / 14


def test_padding_of_an_epoch_and_without_grouping() -> None:
    training, lengths = Epochs(learning_rate=1e-3, batch_size=2), [1, 9] * 50

    def of(batch: Sequence[int]) -> Mean:
        return padding(forwards_of(batch, 2, 1), row)

    plain = Batching(lengths, of)
    assert padding_metrics(training, 0, plain, plain).keys() == {"padding"}
    grouped = padding_metrics(training, 0, Batching(lengths, of, Lengths(lengths)), plain)
    assert grouped["padding"] == 0 and 0.1 < grouped["padding_plain"] < 0.5
