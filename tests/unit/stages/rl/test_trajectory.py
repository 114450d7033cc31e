"""A batch of experience: rows are selected, padded and joined, by hand."""

from __future__ import annotations

import torch

from data.batches.tokenize import Prompt
from stages.rl.trajectory import Trajectory
from stages.sampling.decoding import Response


def trajectory(*lengths: int, first: float = 1.0) -> Trajectory:
    """Rows with distinct numbers: `first` in the first row, `first` + 1 in the second."""
    rows, longest = len(lengths), max(lengths)
    numbers = torch.arange(first, first + rows)[:, None].expand(rows, longest)
    logprobs = torch.where(torch.arange(longest) < torch.tensor(lengths)[:, None], numbers, 0.0)
    return Trajectory(
        prompts=[Prompt("", "", [9] * (row + 1)) for row in range(rows)],
        responses=[Response([7] * length) for length in lengths],
        sampled_logprobs=logprobs,
        logprobs=logprobs,
        ref_logprobs=logprobs / 2,
        values=-logprobs,
        terms={"rm": numbers[:, 0]},
    )


def test_mask_lengths_kl_and_tokens_by_hand() -> None:
    batch = trajectory(2, 1)
    assert batch.mask.tolist() == [[True, True], [True, False]]
    assert batch.lengths.tolist() == [2, 1]
    assert batch.kl.tolist() == [1.0, 1.0]  # 2 tokens of 1 - 1/2, and one of 2 - 1
    assert batch.tokens == (1 + 2) + (2 + 1)


def test_selected_rows_are_padded_to_the_longest_of_them() -> None:
    batch = trajectory(4, 2, 1)
    chosen = batch.select([2, 1])
    assert chosen.logprobs.tolist() == [[3.0, 0.0], [2.0, 2.0]]
    assert chosen.values.tolist() == [[-3.0, 0.0], [-2.0, -2.0]]
    assert [len(response.ids) for response in chosen.responses] == [1, 2]
    assert [len(prompt.prompt_ids) for prompt in chosen.prompts] == [3, 2]
    assert chosen.terms["rm"].tolist() == [3.0, 2.0]


def test_parts_are_joined_at_the_width_of_the_longest() -> None:
    joined = Trajectory.join([trajectory(1), trajectory(3, 2, first=5.0)])
    assert joined.logprobs.tolist() == [[1.0, 0.0, 0.0], [5.0, 5.0, 5.0], [6.0, 6.0, 0.0]]
    assert joined.mask.sum(1).tolist() == [1, 3, 2] and len(joined) == 3
    assert joined.terms["rm"].tolist() == [1.0, 5.0, 6.0]
