"""Padding, masks and packing: a packed token attends to the same tokens as in an unpacked example."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from data.batches import collate
from data.batches.pack import PackedSequence, level_rows, pack
from data.batches.tokenize import Demonstration
from stages.models.demo_models import embedded_model

PAD = 9


def test_demonstrations_are_padded_on_the_right():
    rows = [Demonstration([1, 2], [3, 9]), Demonstration([4], [5])]  # a completion may hold the pad token
    batch = collate.demonstrations(rows, pad_id=PAD)
    assert batch.input_ids.tolist() == [[1, 2, 3, 9], [4, 5, 9, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.completion_mask.tolist() == [[False, False, True, True], [False, True, False, False]]
    assert (batch.input_ids.dtype, batch.attention_mask.dtype) == (torch.long, torch.long)
    assert batch.completion_mask.dtype == torch.bool


def test_prompts_are_padded_on_the_left():
    batch = collate.prompts([[1, 2, 3], [4]], pad_id=PAD)
    assert batch.input_ids.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_batches_move_as_a_whole():
    batch = collate.demonstrations([Demonstration([1], [2])], pad_id=PAD).to("meta")
    assert isinstance(batch, collate.Batch) and {tensor.device.type for tensor in batch} == {"meta"}


# Packing


def demonstration(prompt, completion, token):
    return Demonstration([token] * prompt, [token] * completion)


def test_best_fit_decreasing():
    # Lengths 5, 3, 4, 2 into sequences of 7: 5 opens one, 4 another; 3 fits the second, 2 the first
    examples = [
        demonstration(2, 3, 1),
        demonstration(1, 2, 2),
        demonstration(3, 1, 3),
        demonstration(1, 1, 4),
    ]
    first, second = pack(examples, max_length=7)
    assert first.input_ids == [1, 1, 1, 1, 1, 4, 4]
    assert first.completion_mask == [False, False, True, True, True, False, True]
    assert (first.seq_lengths, first.position_ids) == ([5, 2], [0, 1, 2, 3, 4, 0, 1])
    assert second.input_ids == [3, 3, 3, 3, 2, 2, 2]
    assert second.completion_mask == [False, False, False, True, False, True, True]
    assert (second.seq_lengths, second.segment_ids) == ([4, 3], [0, 0, 0, 0, 1, 1, 1])


def test_packing_keeps_every_example_whole():
    examples = [demonstration(1 + i % 7, 1 + i % 5, i) for i in range(1500)]  # above the batch size of `map`
    packed = pack(examples, max_length=16)
    unpacked = []
    for row in packed:
        assert sum(row.seq_lengths) == len(row.input_ids) == len(row.completion_mask) <= 16
        start = 0
        for length in row.seq_lengths:
            ids, mask = row.input_ids[start : start + length], row.completion_mask[start : start + length]
            prompt_length = mask.index(True)
            assert all(mask[prompt_length:])
            unpacked.append((ids[0], Demonstration(ids[:prompt_length], ids[prompt_length:])))
            start += length
    assert sorted(unpacked, key=lambda pair: pair[0]) == list(enumerate(examples))
    assert len(packed) < 0.55 * len(examples)


def test_an_example_that_would_be_cut_is_an_error():
    with pytest.raises(ValueError, match="of 5 tokens does not fit into sequences of 4"):
        pack([demonstration(2, 3, 1)], max_length=4)
    assert pack([], max_length=4) == []


def test_packed_batch():
    rows = [
        PackedSequence([1, 2, 3, 4], [False, True, False, True], [2, 2]),
        PackedSequence([5, 6], [False, True], [2]),
    ]
    batch = collate.packed(rows, pad_id=PAD)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4], [5, 6, 9, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1], [0, 1, 0, 0]]
    assert batch.completion_mask.tolist() == [[False, True, False, True], [False, True, False, False]]
    assert batch.attention_mask.shape == (2, 1, 4, 4)
    both_pairs = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]  # the second row's are padding
    assert batch.attention_mask[:, 0].int().tolist() == [both_pairs, both_pairs]


def test_packed_tokens_attend_to_what_they_would_attend_to_alone():
    """A model gives an example the same logits packed and alone."""
    model = AutoModelForCausalLM.from_pretrained(
        embedded_model("tiny-random"), attn_implementation="sdpa"
    ).eval()
    generator = torch.Generator().manual_seed(0)
    examples = [torch.randint(3, 384, (length,), generator=generator).tolist() for length in (7, 8, 6, 2, 8)]
    rows = pack([Demonstration(ids[:1], ids[1:]) for ids in examples], max_length=16)
    batch = collate.packed(rows, pad_id=0)
    assert [row.seq_lengths for row in rows] == [[8, 8], [7, 6, 2]]  # and one token of padding
    with torch.no_grad():
        packed = model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=batch.attention_mask
        ).logits
        expected = {tuple(ids): model(input_ids=torch.tensor([ids])).logits[0] for ids in examples}
    assert not packed.isnan().any()
    for row, logits in zip(rows, packed, strict=True):
        for ids, actual in zip(
            torch.tensor(row.input_ids).split(row.seq_lengths),
            logits[: len(row.input_ids)].split(row.seq_lengths),
            strict=True,
        ):
            torch.testing.assert_close(actual, expected.pop(tuple(ids.tolist())))
    assert not expected


# Rankings


def test_ranked_batch():
    batch = collate.rankings([([1, 2], [[3], [4, 5]]), ([6], [[7]])], pad_id=PAD)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [6, 7, 9, 9, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 2, 3], [0, 1, 0, 0, 0]]
    assert batch.last.tolist() == [[2, 4], [1, 0]]
    assert batch.attention_mask.shape == (2, 1, 5, 5)
    first, second = batch.attention_mask[:, 0].int().tolist()
    assert first == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]
    assert second[1] == [1, 1, 0, 0, 0]
    assert all(row[column] for column, row in enumerate(second)), "padding looks at itself, or softmax is NaN"


def test_several_rankings_in_one_row():
    items = [([1, 2], [[3], [4, 5]]), ([6], [[7], []]), ([8, 8], [[7]])]
    batch = collate.rankings(items, pad_id=PAD, rows=[[1, 0], [2]])
    assert batch.input_ids.tolist() == [[6, 7, 1, 2, 3, 4, 5], [8, 8, 7, 9, 9, 9, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2, 2, 3], [0, 1, 2, 0, 0, 0, 0]]
    assert batch.row.tolist() == [0, 0, 1]
    assert batch.last.tolist() == [[4, 6], [1, 0], [2, 0]]
    assert batch.attention_mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 0, 1, 0],
        [0, 0, 1, 1, 0, 1, 1],
    ]
    values = torch.arange(14.0).view(2, 7)
    assert batch.at_last(values)[0].tolist() == [4, 6] and batch.at_last(values)[2, 0] == 9
    assert batch.means(values)[0].tolist() == [4, 5.5] and batch.means(values)[1, 1] == 0


@pytest.mark.parametrize("world", [1, 2, 3])
def test_rows_of_about_one_length(world: int) -> None:
    noise = random.Random(world)
    for _ in range(50):
        shares = [[noise.randint(1, 60) for _ in range(8)] for _ in range(world)]
        rows = level_rows(shares)
        assert len({*map(len, rows)}) == 1, "ranks take as many forwards"
        for share, of_share in zip(shares, rows, strict=True):
            assert sorted(i for row in of_share for i in row) == [*range(8)]
            assert all(row and sum(share[i] for i in row) <= max(map(max, shares)) for row in of_share)
    assert level_rows([[9, 1, 2, 3, 4]]) == [[[0], [4, 1], [3, 2]]]


def test_the_last_token_of_an_empty_completion_is_that_of_its_prompt():
    batch = collate.rankings([([1, 2], [[3, 4], [], [5]])], pad_id=PAD)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5]] and batch.last.tolist() == [[3, 1, 4]]
