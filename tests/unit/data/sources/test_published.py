"""Public formats: small files in the schemas that their authors publish, with texts of our own."""

from __future__ import annotations

import json

import pytest

from configs.errors import UserError
from configs.schema import Source
from data.sources.formats import FORMATS
from data.sources.loading import load_rows
from data.sources.normalise import Reading, normalise
from tests.support.turns import assistant, user


def aspect(rating):
    return {"Rating": rating, "Rationale": "A reason."}


def of_model(model, response, overall, *ratings):
    names = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    return {
        "model": model,
        "principle": "helpfulness",
        "custom_system_prompt": "Be helpful.",
        "response": response,
        "annotations": {name: aspect(rating) for name, rating in zip(names, ratings, strict=True)},
        "critique": "Good.",
        "overall_score": overall,
        "fine-grained_score": 3.0,
    }


ULTRAFEEDBACK = {
    "source": "evol_instruct",
    "instruction": "What is the capital of France?",
    "models": ["alpaca-7b", "gpt-4", "starchat"],
    "completions": [
        of_model("alpaca-7b", "Lyon.", 2.0, "1", "2", "1", "2"),
        of_model("gpt-4", "Paris.", 8.5, "5", "5", "5", "4"),
        of_model("starchat", "Paris, on the Seine.", 7.0, "5", "N/A", "5", "5"),
    ],
    "correct_answers": ["None"],
    "incorrect_answers": ["None"],
}
PANDALM = {
    "idx": 4,
    "motivation_app": "Grammarly",
    "cmp_key": "bloom-7b_llama-7b",
    "instruction": "Correct the sentence.",
    "input": "She go home.",
    "response1": "She go to home.",
    "response2": "She goes home.",
    "annotator1": 2,
    "annotator2": 2,
    "annotator3": 0,
}
LLMBAR = {"input": "Name a prime.", "output_1": "Nine.", "output_2": "Seven.", "label": 2}
QUESTIONS = [user("Name a river."), user("Where does it end?")]
MT_BENCH = {
    "question_id": 81,
    "model_a": "alpaca-13b",
    "model_b": "gpt-4",
    "winner": "model_b",
    "judge": "expert_0",
    "conversation_a": [QUESTIONS[0], assistant("A river."), QUESTIONS[1], assistant("Nowhere.")],
    "conversation_b": [QUESTIONS[0], assistant("The Rhine."), QUESTIONS[1], assistant("In the sea.")],
    "turn": 1,
}
REWARD_BENCH = {
    "id": 30,
    "prompt": "2 + 2?",
    "chosen": "4",
    "chosen_model": "GPT4",
    "rejected": "5",
    "rejected_model": "unknown",
    "subset": "math-prm",
}
REWARD_BENCH_2 = {
    "id": "7",
    "prompt": "Name a colour.",
    "chosen": ["Red.", "Blue."],
    "rejected": ["Seven.", "Rome.", "Loud."],
    "num_correct": 2,
    "num_incorrect": 3,
    "total_completions": 5,
    "models": ["m"],
    "subset": "Ties",
    "additional_metadata": {"category": "colours", "correct": None, "index": 3.0},
}
SAMPLES = {
    "ultrafeedback": ULTRAFEEDBACK,
    "pandalm": PANDALM,
    "llmbar": LLMBAR,
    "mt_bench": MT_BENCH,
    "preference": REWARD_BENCH,
    "reward_bench_2": REWARD_BENCH_2,
}


@pytest.mark.parametrize(
    ("row", "prompt", "completions", "ranks"),
    [
        (
            ULTRAFEEDBACK,
            "What is the capital of France?",
            ["Paris.", "Paris, on the Seine.", "Lyon."],
            [0, 1, 2],
        ),
        (PANDALM, "Correct the sentence.\nShe go home.", ["She goes home.", "She go to home."], [0, 1]),
        (LLMBAR, "Name a prime.", ["Seven.", "Nine."], [0, 1]),
        (MT_BENCH, QUESTIONS[:1], [[assistant("The Rhine.")], [assistant("A river.")]], [0, 1]),
        (REWARD_BENCH, "2 + 2?", ["4", "5"], [0, 1]),
        (REWARD_BENCH_2, "Name a colour.", ["Red.", "Blue.", "Seven.", "Rome.", "Loud."], [0, 0, 1, 1, 1]),
    ],
    ids=list(SAMPLES),
)
@pytest.mark.parametrize("named", [False, True])
def test_a_published_row_is_a_ranking(tmp_path, row, prompt, completions, ranks, named):
    key = next(key for key, sample in SAMPLES.items() if sample is row)
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([row]))
    source = Source(path=str(file), format=key if named else None)
    (ranking,) = load_rows(source, "rankings", print).rows
    assert (ranking["prompt"], ranking["completions"], ranking["ranks"]) == (prompt, completions, ranks)
    (demonstration,) = load_rows(source, "demonstrations", print).rows
    assert (demonstration["prompt"], demonstration["completion"]) == (prompt, completions[0])
    assert load_rows(source, "prompts", print).rows[0]["prompt"] == prompt


def test_ultrafeedback_ranks_by_the_overall_score_or_by_the_mean_of_the_aspects():
    by = {
        how: normalise(ULTRAFEEDBACK, "rankings", Reading(rank_by=how))
        for how in ("overall_score", "aspects")
    }
    assert by["overall_score"]["scores"] == [8.5, 7.0, 2.0]
    # (5 + 5 + 5 + 4) / 4, (5 + 5 + 5) / 3 as one aspect does not apply, (1 + 2 + 1 + 2) / 4
    assert by["aspects"]["scores"] == [5.0, 4.75, 1.5]
    assert by["aspects"]["completions"] == ["Paris, on the Seine.", "Paris.", "Lyon."]


def changed(row, **values):
    return {**row, **values}


def one_answer_with(**values):
    answers = ULTRAFEEDBACK["completions"]
    return changed(ULTRAFEEDBACK, completions=[changed(answers[0], **values), *answers[1:]])


@pytest.mark.parametrize(
    ("votes", "ranks"),
    [
        ((1, 1, 2), [0, 1]),
        ((2, 0, 2), [1, 0]),
        ((1, 1, 1), [0, 1]),
        ((0, 0, 1), None),
        ((0, 1, 2), None),  # no majority
        ((2.0, 2.0, 0.0), [1, 0]),
    ],
)
def test_the_majority_of_pandalm_decides(tmp_path, votes, ranks):
    row = PANDALM | dict(zip(("annotator1", "annotator2", "annotator3"), votes, strict=True))
    (tmp_path / "a.jsonl").write_text(json.dumps(PANDALM) + "\n" + json.dumps(row) + "\n")
    loaded = load_rows(Source(path=f"{tmp_path}/a.jsonl"), "rankings", lambda note: None)
    if ranks is None:
        assert loaded.left_out == 1
    else:
        best = (PANDALM["response1"], PANDALM["response2"])[ranks.index(0)]
        assert loaded.rows[1]["completions"][0] == best


def test_an_empty_input_of_pandalm_is_nan(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([changed(PANDALM, input=float("nan"))]))
    (row,) = load_rows(Source(path=f"{tmp_path}/a.json"), "rankings", print).rows
    assert row["prompt"] == "Correct the sentence."


def left_out(row, tmp_path, good):
    (tmp_path / "a.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(row) + "\n")
    notes: list[str] = []
    assert load_rows(Source(path=f"{tmp_path}/a.jsonl"), "rankings", notes.append).left_out == 1
    return notes[-1]


@pytest.mark.parametrize(
    ("row", "good", "reason"),
    [
        (changed(MT_BENCH, turn=2), MT_BENCH, "conversations that differ before the last answer"),
        (changed(MT_BENCH, winner="tie"), MT_BENCH, "all completions tie"),
        (changed(MT_BENCH, winner="tie (inconsistent)"), MT_BENCH, "all completions tie"),
        (changed(MT_BENCH, winner="tie (bothbad)"), MT_BENCH, "all completions tie"),
        (
            one_answer_with(overall_score=None),
            ULTRAFEEDBACK,
            "an answer has no `overall_score`; `rank_by: asp",
        ),
        (changed(ULTRAFEEDBACK, completions=[], models=[]), ULTRAFEEDBACK, "`completions` is empty"),
        (
            changed(REWARD_BENCH_2, rejected=["Red.", "Blue."], num_incorrect=2, total_completions=4),
            REWARD_BENCH_2,
            "no two completions",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rows_that_decide_nothing_are_left_out(row, good, reason, tmp_path):
    assert reason in left_out(row, tmp_path, good)


def test_turn_2_of_mt_bench_is_a_ranking_if_the_first_answers_are_the_same():
    same = [QUESTIONS[0], assistant("The Rhine."), QUESTIONS[1], assistant("Nowhere.")]
    row = normalise(changed(MT_BENCH, conversation_a=same, turn=2), "rankings")
    assert row["prompt"] == same[:3] and row["completions"][0] == [assistant("In the sea.")]


@pytest.mark.parametrize(
    ("row", "part"),
    [
        (one_answer_with(overall_score="high"), "`overall_score` must be a number, not 'high'"),
        (one_answer_with(overall_score="1_0"), "`overall_score` must be a number, not '1_0'"),
        (one_answer_with(foo=1), "the key `foo` has no place in an answer of UltraFeedback"),
        (one_answer_with(response=3), "`completions` must be text or a list of messages, not 3"),
        (changed(ULTRAFEEDBACK, foo=1), "the key `foo` has no place in a row of UltraFeedback"),
        (changed(PANDALM, annotator2=3), "`annotator2` must be 1 or 2 for the better answer or 0 for a tie"),
        (changed(PANDALM, annotator2="1"), "not '1'"),
        (changed(PANDALM, response2=None), "have no place in a prompt (`prompt`)"),
        (changed(LLMBAR, label=0), "`label` must be 1 or 2 for the better output, not 0"),
        (changed(LLMBAR, label=True), "not True"),
        (changed(LLMBAR, output_1=1), "must be text"),
        (changed(MT_BENCH, winner="gpt-4"), "`winner` must be model_a, model_b or tie, not 'gpt-4'"),
        (changed(MT_BENCH, turn=3), "`conversation_a` has 2 answers, and `turn` is 3"),
        (changed(MT_BENCH, turn=10**400), "`conversation_a` has 2 answers, and `turn` is 1000"),
        (changed(MT_BENCH, turn=0), "`turn` must be a number from 1 on, not 0"),
        (changed(MT_BENCH, conversation_b=[user("?"), assistant("!")]), "ask different questions"),
        (changed(MT_BENCH, conversation_b=[]), "`conversation_b` must be text or a list of messages"),
        (changed(MT_BENCH, tools=[1]), "`tools`: tool calls are not supported"),
        (changed(REWARD_BENCH_2, num_correct=1), "`num_correct` is 1, and the list has 2 answers"),
        (changed(REWARD_BENCH_2, chosen=[]), "the keys `num_correct`, `num_incorrect`, `total_completions`"),
        (changed(REWARD_BENCH_2, images=["a.png"]), "images, sound and video are not supported"),
    ],
)  # fmt: skip
def test_other_values_are_refused(row, part, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError) as caught:
        load_rows(Source(path=f"{tmp_path}/a.jsonl"), "rankings", print)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("rating", "part"),
    [
        (aspect("high"), "`annotations[].Rating` must be numbers or N/A"),
        (aspect("1_0"), "`annotations[].Rating` must be numbers or N/A"),
        (aspect(10**400), "`annotations[].Rating` must be numbers or N/A"),
        ("5", "`annotations` must hold a `Rating` of each aspect"),
    ],
)
def test_ratings_that_are_no_numbers_are_refused(rating, part, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(one_answer_with(annotations={"honesty": rating})))
    with pytest.raises(UserError) as caught:
        load_rows(Source(path=f"{tmp_path}/a.jsonl", rank_by="aspects"), "rankings", print)
    assert part in str(caught.value)


# `format` and `rank_by`


@pytest.mark.parametrize(
    ("row", "source", "part"),
    [
        (LLMBAR, {"format": "pandalm"}, "`format` is pandalm, and the row has no `annotator1`, `annotator2`"),
        ({"prompt": "p", "completion": "c"}, {"format": "preference"}, "the row has no `chosen`, `rejected`"),
        (REWARD_BENCH, {"format": "reward_bench_2"}, "`rejected` are not of a row of RewardBench 2"),
        (changed(LLMBAR, foo=1), {"format": "llmbar"}, "the key `foo` has no place in a row of LLMBar"),
        (REWARD_BENCH, {"rank_by": "aspects"}, "`rank_by` is of UltraFeedback, and the row is a preference"),
    ],
)  # fmt: skip
def test_a_row_of_another_format_is_refused_by_name(row, source, part, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError) as caught:
        load_rows(Source(path=f"{tmp_path}/a.jsonl", **source), "rankings", print)
    assert part in str(caught.value)


def test_a_named_format_reads_what_detection_reads_as_another():
    row = {"prompt": "Sky?", "messages": [user("Sky?"), assistant("Blue.")]}
    assert normalise(row, "prompts", Reading(format="conversation")) == {"prompt": [user("Sky?")]}


def test_every_format_has_one_name_of_the_configuration():
    names = Source.model_json_schema()["properties"]["format"]["anyOf"][0]["enum"]
    assert sorted(form.key for form in FORMATS) == sorted(names)


def test_every_column_is_a_key_of_a_format():
    columns = Source.model_json_schema()["$defs"]["Columns"]["properties"]
    assert set(columns) <= set().union(*(form.used for form in FORMATS))


# A text without a prompt


def texts(tmp_path, number):
    rows = "".join(json.dumps({"text": f"Story {n}. Once upon a time."}) + "\n" for n in range(number))
    (tmp_path / "a.jsonl").write_text(rows)
    return Source(path=f"{tmp_path}/a.jsonl")


def test_a_text_is_a_demonstration_without_a_prompt(tmp_path):
    rows = load_rows(texts(tmp_path, 2), "demonstrations", print).rows
    assert [(row["prompt"], row["completion"]) for row in rows] == [
        ("", "Story 0. Once upon a time."),
        ("", "Story 1. Once upon a time."),
    ]
    for kind, part in (
        ("prompts", "`text` is a text without a prompt"),
        ("rankings", "no completions to rank"),
    ):
        with pytest.raises(UserError, match=part):
            load_rows(texts(tmp_path, 2), kind, print)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"text": "t", "label": 1}, "`label`: `label` rates one answer, which this form does not have"),
        ({"text": 3}, "`text` must be text, not 3"),
        ({"text": " "}, "a completion is empty"),
        ({"text": "\0"}, "NUL"),
    ],
)
def test_texts_that_are_refused(row, part, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=part):
        load_rows(Source(path=f"{tmp_path}/a.jsonl"), "demonstrations", print)
