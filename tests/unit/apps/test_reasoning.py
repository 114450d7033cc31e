"""Answers after reasoning, and the vote among samples (self-consistency)."""

from __future__ import annotations

import pytest

from apps.evaluate.candidates import Candidate, parse_candidates
from apps.evaluate.in_context import in_context
from apps.evaluate.reasoning import before_reasoning, final_answer, vote
from configs.errors import UserError
from configs.schema import Data
from data.batches.tokenize import prompts as tokenize_prompts

STEPS = "Let's think step by step."


@pytest.mark.parametrize(
    ("text", "answer", "ended"),
    [
        ("There are 3 cars. 2 more arrive. The answer is 5.", "5", True),
        ("So the answer is: 3.5 metres.\n\nQ: How far?\nThe answer is 7.", "3.5 metres", True),
        ("THE ANSWER IS Paris\nand not Rome", "Paris", True),
        ("Then the answer is twenty-", "twenty-", False),
        ("First this.\n\nThen that.\n\nForty two\n\n", "Forty two", False),
        ("just one line", "just one line", False),
        ("The answer is 1,234.5.", "1,234.5", True),
        ("  \n ", "", False),
        ("", "", False),
    ],
)
def test_the_final_answer_of_a_text(text: str, answer: str, ended: bool) -> None:
    assert final_answer(text) == (answer, ended)


@pytest.mark.parametrize(
    ("answers", "place", "share"),
    [
        (["5", "6", "5"], 0, 2 / 3),
        (["7", "Five.", "five", ' "FIVE" '], 1, 3 / 4),
        (["1,000", "999", "1000"], 0, 2 / 3),
        (["-5", "5", "5"], 1, 2 / 3),
        (["a", "b"], 0, 1 / 2),  # the earliest of equally frequent ones
        (["b  c", "b c", "a"], 0, 2 / 3),
        (["", "", "x"], 0, 2 / 3),
        (["?", "!"], 0, 1 / 2),  # punctuation alone is an answer of its own
        (["罗马", "巴黎", "巴黎。"], 1, 2 / 3),
        (["only"], 0, 1.0),
    ],
)
def test_the_most_frequent_answer_wins(answers: list[str], place: int, share: float) -> None:
    assert vote(answers) == (place, pytest.approx(share))


def test_a_prompt_asks_for_steps_in_its_own_form() -> None:
    assert before_reasoning("2 + 2?", chat=False) == f"2 + 2?\n{STEPS}"
    end = f'{STEPS} Then write "The answer is" and the answer.'
    assert before_reasoning("2 + 2?", chat=True) == f"2 + 2?\n\n{end}"
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    asked = before_reasoning(messages, chat=True)
    assert asked == [messages[0], {"role": "user", "content": f"2 + 2?\n\n{end}"}]
    assert messages[1]["content"] == "2 + 2?"


def test_demonstrations_stand_before_the_prompt_and_steps_behind_it(tiny_tokenizer) -> None:
    source = {"path": "x.jsonl"}
    data = Data.model_validate({"sft": source, "rm": source, "ppo": source})
    prompts = tokenize_prompts([{"prompt": "Late?"}], tiny_tokenizer, data)[0]
    candidate = Candidate("base+1+cot", "base", shots=1, reasons=True)
    rows = [{"prompt": "Early?", "completion": " The answer is no."}]
    (prompt,) = in_context(candidate, prompts, rows, tiny_tokenizer, data, 400, seed=1)
    assert prompt.prompt == f"Early? The answer is no.\n\nLate?\n{STEPS}"


def test_forms_of_votes_and_reasoning() -> None:
    names = ["sft~5", "base+cot", "base+cot~3", "base+4-nearest+cot~3", "~/runs/a/adapter"]
    assert parse_candidates(names) == [
        Candidate("sft~5", "sft", votes=5),
        Candidate("base+cot", "base", reasons=True),
        Candidate("base+cot~3", "base", reasons=True, votes=3),
        Candidate("base+4-nearest+cot~3", "base", shots=4, choice="nearest", reasons=True, votes=3),
        Candidate("~/runs/a/adapter", "~/runs/a/adapter"),
    ]
    assert parse_candidates(["base+cot~3", "ppo"])[0].samples == 3


@pytest.mark.parametrize(
    ("name", "reason"), [("sft~0", "from 1 to 1024"), ("sft~2000", "from 1 to"), ("sft@2~3", "Leave one out")]
)
def test_other_votes_are_refused(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse_candidates([name, "ppo"])
