"""Demonstrations in front of a prompt: which ones, in which form, and when there are too many."""

from __future__ import annotations

from collections import Counter

import pytest

from apps.evaluate.candidates import Candidate
from apps.evaluate.in_context import first_part, in_context
from configs.errors import UserError
from configs.schema import Data
from data.batches.tokenize import prompts as tokenize_prompts
from data.sources.messages import as_messages

ROWS = [
    {"prompt": "The soup was hot.", "completion": " She waited."},
    {"prompt": "The train left early.", "completion": " He ran."},
    {"prompt": "A dog barked at night.", "completion": " Nobody slept."},
]
SOURCE = {"path": "x.jsonl"}


def data(*, chat: bool) -> Data:
    return Data.model_validate({"sft": SOURCE, "rm": SOURCE, "ppo": SOURCE, "chat": chat})


@pytest.fixture
def prompts(tiny_tokenizer):
    return tokenize_prompts([{"prompt": "The train was late."}], tiny_tokenizer, data(chat=False))[0]


def extend(name: str, prompts, tokenizer, *, chat: bool = False, context: int = 500):
    shots, _, choice = name.removeprefix("base+").partition("-")
    candidate = Candidate(name, "base", shots=int(shots), choice=choice or "random")
    return in_context(candidate, prompts, ROWS, tokenizer, data(chat=chat), context, seed=5)


def test_plain_text_is_demonstrations_then_prompt(prompts, tiny_tokenizer) -> None:
    (prompt,) = extend("base+3", prompts, tiny_tokenizer)
    *shown, last = str(prompt.prompt).split("\n\n")
    assert last == "The train was late."
    assert Counter(shown) == Counter(f"{row['prompt']}{row['completion']}" for row in ROWS)


def test_the_nearest_demonstration_stands_last(prompts, tiny_tokenizer) -> None:
    (prompt,) = extend("base+2-nearest", prompts, tiny_tokenizer)
    assert str(prompt.prompt).split("\n\n")[1] == "The train left early. He ran."


def test_shuffled_demonstrations_have_the_answers_of_others(prompts, tiny_tokenizer) -> None:
    (prompt,) = extend("base+3-shuffled", prompts, tiny_tokenizer)
    shown = str(prompt.prompt).split("\n\n")[:-1]
    true = {f"{row['prompt']}{row['completion']}" for row in ROWS}
    assert not true.intersection(shown)
    assert sorted(text.rsplit(" ", 2)[-1] for text in shown) == ["ran.", "slept.", "waited."]


def test_a_chat_has_a_turn_for_each(prompts, tiny_tokenizer) -> None:
    (prompt,) = extend("base+1", prompts, tiny_tokenizer, chat=True)
    assert [message["role"] for message in prompt.prompt] == ["user", "assistant", "user"]
    assert prompt.prompt[-1]["content"] == "The train was late."


def test_without_demonstrations_the_prompt_is_itself(prompts, tiny_tokenizer) -> None:
    assert extend("base+0", prompts, tiny_tokenizer) == prompts


def test_too_many_or_too_long_is_refused(prompts, tiny_tokenizer) -> None:
    with pytest.raises(UserError, match="3 demonstrations"):
        extend("base+4", prompts, tiny_tokenizer)
    with pytest.raises(UserError, match="exceed the context"):
        extend("base+3", prompts, tiny_tokenizer, context=20)


def test_an_answer_ends_before_the_next_demonstration() -> None:
    assert first_part(" He ran.\n\nThe soup was cold. She") == ("He ran.", True)
    assert first_part(" He ran and") == ("He ran and", False)


@pytest.mark.parametrize(
    ("shown", "asked", "nearest"),
    [
        (["7 * 8 =", "1 + 2 ="], "1 + 3 =", "1 + 2 ="),
        (["今天天气很好", "我喜欢吃苹果"], "他喜欢吃梨", "我喜欢吃苹果"),
    ],
)
def test_arithmetic_and_scripts_without_blanks_have_a_nearest(tiny_tokenizer, shown, asked, nearest) -> None:
    rows = [{"prompt": prompt, "completion": " a."} for prompt in shown]
    given = tokenize_prompts([{"prompt": asked}], tiny_tokenizer, data(chat=False))[0]
    candidate = Candidate("base+1-nearest", "base", shots=1, choice="nearest")
    (prompt,) = in_context(candidate, given, rows, tiny_tokenizer, data(chat=False), 500, seed=5)
    assert str(prompt.prompt).split("\n\n")[0] == f"{nearest} a."


def test_the_prompt_s_system_message_stands_first_and_alone(tiny_tokenizer) -> None:
    def row(system: str, text: str) -> list[dict[str, str]]:
        return [{"role": "system", "content": system}, {"role": "user", "content": text}]

    shown = [{"prompt": row("Be long.", "Hi."), "completion": [{"role": "assistant", "content": "Hello."}]}]
    given = tokenize_prompts([{"prompt": row("Be brief.", "Bye.")}], tiny_tokenizer, data(chat=True))[0]
    candidate = Candidate("base+1", "base", shots=1)
    (prompt,) = in_context(candidate, given, shown, tiny_tokenizer, data(chat=True), 500, seed=5)
    said = [(message["role"], message["content"]) for message in as_messages(prompt.prompt, "user")]
    assert said == [("system", "Be brief."), ("user", "Hi."), ("assistant", "Hello."), ("user", "Bye.")]
