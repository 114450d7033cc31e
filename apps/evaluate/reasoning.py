"""Answers after reasoning, and the answer that most samples give. Pure functions of texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from data.sources.messages import Text

STEPS = "Let's think step by step."  # Kojima et al. 2022
END = 'Then write "The answer is" and the answer.'
SAID = re.compile(r"\banswer is:?\s*(.+?)(?:\.(?=\s|$)|\n|$)", re.IGNORECASE)
AROUND = " \t\n.,;:!?\"'`*()[]。，！？：；「」“”"  # of an answer, which says nothing
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3})")


def before_reasoning(prompt: Text, chat: bool) -> Text:
    """A prompt that asks for reasoning: in a chat in its last message, in plain text as its continuation."""
    if not isinstance(prompt, str):
        return [*prompt[:-1], {**prompt[-1], "content": f"{prompt[-1]['content']}\n\n{STEPS} {END}"}]
    return f"{prompt}\n\n{STEPS} {END}" if chat else f"{prompt}\n{STEPS}"


def final_answer(text: str) -> tuple[str, bool]:
    """What stands after the first "answer is", and whether its sentence ends; else the last line with text.

    The first one answers the question that was asked. A base may go on with a question of its own.
    """
    if said := SAID.search(text):
        return said[1].strip(), said.end() > said.end(1)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else ""), False


def vote(answers: Sequence[str]) -> tuple[int, float]:
    """The place of the first of the most frequent answers, and the share of the answers that agree with it.

    Answers agree if they differ by case, blanks, commas in numbers, and punctuation around them only. Of
    answers that are equally frequent, the earliest counts (Wang et al. 2022, equation of section 2).
    """
    kept = [_key(answer) for answer in answers]
    winner, count = Counter(kept).most_common(1)[0]
    return kept.index(winner), count / len(kept)


def _key(answer: str) -> str:
    words = " ".join(THOUSANDS.sub("", answer).casefold().split())
    return words.strip(AROUND) or words
