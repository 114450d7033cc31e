"""Public data sets of judged answers, each as a ranking: `prompt`, `completions`, and `ranks` or `scores`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from data.sources.bad_rows import BadRow, LeftOut
from data.sources.keys import Fields, check_keys
from data.sources.messages import read_text, without_weights
from data.sources.order import is_number
from data.sources.text import shown

RankBy = Literal["overall_score", "aspects"] | None
BEST_FIRST = {1: [0, 1], 2: [1, 0]}  # ranks of two answers, by the number of the better one
WINNERS = {
    "model_a": [0, 1],
    "model_b": [1, 0],
    "tie": [0, 0],
    "tie (bothbad)": [0, 0],  # of people, in Chatbot Arena
    "tie (inconsistent)": [0, 0],  # a judge that preferred the first answer in both orders, or the second
}
OF_ANSWER = (
    "response", "model", "principle", "custom_system_prompt", "annotations", "critique", "overall_score",
    "fine-grained_score",
)  # fmt: skip


def is_ultrafeedback(fields: Fields) -> bool:
    """Whether `completions` are objects with a `response`; a few rows of the data set have none at all."""
    answers = fields["completions"]
    if not isinstance(answers, list):
        return False
    if not answers:
        return "correct_answers" in fields
    return all(isinstance(answer, Mapping) and "response" in answer for answer in answers)


def ultrafeedback(fields: Fields, rank_by: RankBy) -> Fields:
    """UltraFeedback (openbmb/UltraFeedback): answers of several models, rated by GPT-4.

    The score of an answer is its `overall_score`, or the mean rating of its aspects.
    """
    answers = fields["completions"]
    if not answers:
        raise LeftOut("`completions` is empty")
    for answer in answers:
        check_keys(answer, OF_ANSWER, "an answer of UltraFeedback")
    score = _mean_of_aspects if rank_by == "aspects" else _overall_score
    return _ranking(
        fields,
        completions=[answer["response"] for answer in answers],
        scores=[score(each) for each in answers],
    )


def _overall_score(answer: Mapping[str, Any]) -> float:
    given = answer.get("overall_score")
    if given is None:
        raise LeftOut("an answer has no `overall_score`; `rank_by: aspects` of this source needs none")
    score = _as_number(given)
    if score is None:
        raise BadRow(f"`overall_score` must be a number, not {shown(given)}")
    return score


def _mean_of_aspects(answer: Mapping[str, Any]) -> float:
    """The mean of the ratings that are numbers. UltraFeedback has "N/A" for aspects that do not apply."""
    aspects = answer.get("annotations")
    if not isinstance(aspects, Mapping) or not all(isinstance(each, Mapping) for each in aspects.values()):
        raise BadRow(f"`annotations` must hold a `Rating` of each aspect, not {shown(aspects)}")
    ratings = [each.get("Rating") for each in aspects.values()]
    numbers = [_as_number(rating) for rating in ratings if rating not in (None, "N/A")]
    if not numbers:
        raise LeftOut("an answer has no rating of any aspect")
    known = [number for number in numbers if number is not None]
    if len(known) < len(numbers):
        raise BadRow(f"`annotations[].Rating` must be numbers or N/A, not {shown(ratings)}")
    return math.fsum(known) / len(known)


def pandalm(fields: Fields, _: RankBy) -> Fields:
    """PandaLM's test set: three people say which of two answers is better, 0 for a tie.

    The majority decides. Three different votes are a tie.
    """
    votes = [_vote(fields, f"annotator{number}") for number in (1, 2, 3)]
    vote, count = Counter(votes).most_common(1)[0]
    ranks = BEST_FIRST.get(vote, [0, 0]) if count > 1 else [0, 0]
    extra = fields.get("input")
    if isinstance(extra, float) and math.isnan(extra):  # what pandas writes for an empty cell
        extra = None
    answers = [fields["response1"], fields["response2"]]
    return _ranking(fields, completions=answers, ranks=ranks, input=extra or "")


def _vote(fields: Fields, key: str) -> int:
    vote = fields[key]
    if not is_number(vote) or vote not in (0, 1, 2):
        raise BadRow(f"`{key}` must be 1 or 2 for the better answer or 0 for a tie, not {shown(vote)}")
    return int(vote)


def llmbar(fields: Fields, _: RankBy) -> Fields:
    """LLMBar: `label` says which of two outputs follows the instruction, which is `input`."""
    label = _as_number(fields["label"])
    if label not in (1, 2):
        raise BadRow(f"`label` must be 1 or 2 for the better output, not {shown(fields['label'])}")
    answers = [fields["output_1"], fields["output_2"]]
    return _ranking(
        fields, prompt=fields["input"], completions=answers, ranks=BEST_FIRST[int(label)], input=""
    )


def mt_bench(fields: Fields, _: RankBy) -> Fields:
    """MT-Bench's judgements: which of two conversations with the same questions is better at turn `turn`.

    A judgement of turn 1 is about the first answers. One of turn 2 is about answers to different
    conversations, unless the first answers are the same.
    """
    winner, turn = fields["winner"], fields.get("turn")
    if not isinstance(winner, str) or winner not in WINNERS:
        raise BadRow(f"`winner` must be model_a, model_b or tie, not {shown(winner)}")
    if turn is not None and (not is_number(turn) or turn < 1 or turn % 1):
        raise BadRow(f"`turn` must be a number from 1 on, not {shown(turn)}")
    one, other = (_until(fields, key, turn) for key in ("conversation_a", "conversation_b"))
    if one[:-1] != other[:-1]:
        if [each for each in one if each["role"] == "user"] != [
            each for each in other if each["role"] == "user"
        ]:
            raise BadRow("`conversation_a` and `conversation_b` ask different questions")
        raise LeftOut("the judgement is about answers to conversations that differ before the last answer")
    return _ranking(fields, prompt=one[:-1], completions=[one[-1:], other[-1:]], ranks=WINNERS[winner])


def _until(fields: Fields, key: str, turn: float | None) -> list[dict[str, str]]:
    """A conversation up to the answer of `turn`, or to its end."""
    messages = without_weights(read_text(fields[key], key))
    if isinstance(messages, str):
        raise BadRow(f"`{key}` must be a list of messages, not text")
    if turn is not None:
        answers = [place for place, each in enumerate(messages) if each["role"] == "assistant"]
        if len(answers) < turn:
            raise BadRow(f"`{key}` has {len(answers)} answers, and `turn` is {shown(turn)}")
        messages = messages[: answers[int(turn) - 1] + 1]
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise BadRow(f"`{key}` must end with an answer to a question")
    return messages


def is_reward_bench_2(fields: Fields) -> bool:
    """Whether `chosen` and `rejected` are lists of texts."""
    lists = [fields["chosen"], fields["rejected"]]
    return all(
        isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts) for texts in lists
    )


def reward_bench_2(fields: Fields, _: RankBy) -> Fields:
    """RewardBench 2: every right answer ranks above every wrong one, and they tie among themselves."""
    chosen, rejected = fields["chosen"], fields["rejected"]
    numbers = (
        ("num_correct", len(chosen), "list has"),
        ("num_incorrect", len(rejected), "list has"),
        ("total_completions", len(chosen) + len(rejected), "lists have"),
    )
    for key, number, where in numbers:
        if key in fields and fields[key] != number:
            raise BadRow(f"`{key}` is {shown(fields[key])}, and the {where} {number} answers")
    return _ranking(fields, completions=[*chosen, *rejected], ranks=[0] * len(chosen) + [1] * len(rejected))


def _ranking(fields: Fields, **values: Any) -> Fields:
    """The fields of a ranking that a row stands for."""
    kept = {key: fields[key] for key in ("prompt", "input", "system") if key in fields}
    return Fields(kept | values, fields.names)


def _as_number(value: Any) -> float | None:
    """A number, or one that is written as text; None for anything else, such as one beyond all floats."""
    if isinstance(value, str) and "_" in value:  # Python reads 1_0 as 10
        return None
    try:
        number = float(value) if isinstance(value, str) or is_number(value) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
