"""`data.preview` shows what training sees: its tokens and masks, and what it cuts and drops."""

from __future__ import annotations

import pytest

from configs.schema import Data, Source
from data.batches import collate, tokenize
from data.batches.pack import pack
from data.preview import Piece, lengths, packed, preview

QUESTION = [{"role": "user", "content": "Is it late?"}]
LATER = [{"role": "user", "content": "And now?"}]


def data(**changes) -> Data:
    sources = {stage: Source(path=f"{stage}.jsonl") for stage in ("sft", "rm", "ppo")}
    return Data(**sources, **({"max_length": 256, "max_prompt_length": 128} | changes))


def answer(text):
    return [{"role": "assistant", "content": text}]


def demonstration(**changes):
    return {"where": "a.jsonl, line 1", "prompt": QUESTION, "completion": answer("It is nine.")} | changes


def ranking(*texts):
    completions = [answer(text) for text in texts]
    row = {"where": "a.jsonl, line 1", "prompt": QUESTION, "completions": completions}
    return row | {"ranks": list(range(len(texts)))}


def ids_of(pieces, *labels):
    return [id_ for piece in pieces if piece.label in labels for id_ in piece.ids]


def test_a_demonstration_has_the_tokens_and_the_mask_of_its_batch(tiny_tokenizer):
    several = demonstration(prompt=[*QUESTION, *answer("Yes."), *LATER], learned=[1])
    for row in (demonstration(), several):
        pieces = preview(row, "demonstrations", tiny_tokenizer, data()).pieces
        examples, _ = tokenize.demonstrations([row], tiny_tokenizer, data())
        batch = collate.demonstrations(examples, pad_id=0)
        assert ids_of(pieces, "prompt", "context", "learned") == batch.input_ids[0].tolist()
        assert ids_of(pieces, "learned") == batch.input_ids[0][batch.completion_mask[0]].tolist()
    assert [piece.label for piece in pieces] == ["prompt", "learned", "context", "learned"]


def test_the_score_of_a_ranking_is_read_where_training_reads_it(tiny_tokenizer):
    row = ranking("It is nine.", "Late.")
    pieces = preview(row, "rankings", tiny_tokenizer, data()).pieces
    (example,), _ = tokenize.rankings([row], tiny_tokenizer, data())
    batch = collate.rankings([(example.prompt_ids, example.completion_ids)], pad_id=0)
    assert [piece.title for piece in pieces] == ["prompt", "rank 0", "score", "rank 1", "score"]
    sequence = [id_ for piece in pieces for id_ in piece.ids]
    assert sequence == batch.input_ids[0].tolist()
    ends = [len(ids_of(pieces[: number + 1], "prompt", "answer", "score")) - 1 for number in (2, 4)]
    assert ends == batch.last[0].tolist()


def test_what_is_cut_and_what_is_kept_are_the_whole(tiny_tokenizer):
    whole = preview(demonstration(), "demonstrations", tiny_tokenizer, data()).pieces
    prompt, learned = whole[0].ids, whole[1].ids
    limits = data(
        max_prompt_length=len(prompt) - 3, max_length=len(prompt) + len(learned) - 5, overlong="truncate"
    )
    pieces = preview(demonstration(), "demonstrations", tiny_tokenizer, limits).pieces
    assert pieces == [
        Piece("cut", prompt[:3], "cut"),
        Piece("prompt", prompt[3:], "prompt"),
        Piece("learned", learned[:-2], "learned"),
        Piece("cut", learned[-2:], "cut"),
    ]


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_prompt_length": 4}, "dropped: its prompt has {prompt} tokens; data.max_prompt_length is 4"),
        (
            {"max_prompt_length": 24, "max_length": 25},
            "dropped: prompt and longest answer have {whole} tokens; data.max_length is 25",
        ),
    ],
)
def test_a_row_that_is_dropped_is_shown_whole_with_the_reason(limits, reason, tiny_tokenizer):
    whole = preview(demonstration(), "demonstrations", tiny_tokenizer, data())
    dropped = preview(demonstration(), "demonstrations", tiny_tokenizer, data(**limits))
    assert dropped.pieces == whole.pieces and whole.remark == ""
    counts = {"prompt": len(whole.pieces[0].ids), "whole": sum(len(piece.ids) for piece in whole.pieces)}
    assert dropped.remark == reason.format(**counts)


def test_a_ranking_without_a_pair_says_so(tiny_tokenizer):
    tied = ranking("Late.", "Nine.") | {"ranks": [0, 0]}
    assert preview(tied, "rankings", tiny_tokenizer, data()).remark.startswith(
        "dropped: no two of its answers"
    )
    same = ranking("Late, it is.", "Late, I think.")
    (prompt, *_) = preview(same, "rankings", tiny_tokenizer, data()).pieces
    limits = data(max_prompt_length=len(prompt.ids), max_length=len(prompt.ids) + 2, overlong="truncate")
    assert preview(same, "rankings", tiny_tokenizer, limits).remark.startswith("dropped: what is kept")


def test_the_kept_answers_of_a_ranking_with_a_copy(tiny_tokenizer):
    pieces = preview(ranking("Nine.", "Late.", "Late."), "rankings", tiny_tokenizer, data()).pieces
    assert [piece.title for piece in pieces] == ["prompt", "rank 0", "score", "rank 1", "score"]


def test_a_prompt_is_what_ppo_samples_from(tiny_tokenizer):
    (piece,) = preview(demonstration(), "prompts", tiny_tokenizer, data()).pieces
    (example,), _ = tokenize.prompts([demonstration()], tiny_tokenizer, data())
    assert piece == Piece("prompt", example.prompt_ids, "prompt")


def test_lengths_are_those_before_anything_is_cut(tiny_tokenizer):
    rows = [ranking("It is nine.", "Late."), ranking("It is half past nine now.", "No.")]
    limits = data(max_prompt_length=4, max_length=9)
    prompts, answers, both = lengths(rows, "rankings", tiny_tokenizer, limits)
    examples, _ = tokenize.rankings(rows, tiny_tokenizer, data())
    assert prompts.values == [len(example.prompt_ids) for example in examples]
    assert answers.values == [len(ids) for example in examples for ids in example.completion_ids]
    assert both.values == [
        len(example.prompt_ids) + max(map(len, example.completion_ids)) for example in examples
    ]
    assert (prompts.key, prompts.limit, both.limit) == ("data.max_prompt_length", 4, 9)


def test_packed_sequences_are_those_of_training_with_the_row_of_each_example(tiny_tokenizer):
    texts = ["Nine.", "Late.", "It is half past nine now.", "Late.", "Ten, or a little after it.", "x" * 400]
    rows = [
        demonstration(completion=answer(text), where=f"a.jsonl, line {line}")
        for line, text in enumerate(texts, start=1)
    ]
    limits = data(max_length=120, max_prompt_length=60)
    examples, counts = tokenize.demonstrations(rows, tiny_tokenizer, limits)
    sequences = packed(rows, tiny_tokenizer, limits)
    trained = pack(examples, limits.max_length)
    assert counts.dropped == 1 and len(sequences) > 1
    assert [[id_ for example in sequence for id_ in example.ids] for sequence in sequences] == [
        sequence.input_ids for sequence in trained
    ]
    assert [[example.first for example in sequence] for sequence in sequences] == [
        [place for place, position in enumerate(sequence.position_ids) if position == 0]
        for sequence in trained
    ]
    assert [sum(example.learned for example in sequence) for sequence in sequences] == [
        sum(sequence.completion_mask) for sequence in trained
    ]
    shown = [example for sequence in sequences for example in sequence]
    assert sorted(example.where for example in shown) == [f"a.jsonl, line {line}" for line in range(1, 6)]
    whole = {row["where"]: preview(row, "demonstrations", tiny_tokenizer, limits) for row in rows}
    assert all(example.ids == ids_of(whole[example.where].pieces, "prompt", "learned") for example in shown)
