"""The judge that knows words alone, in scripts with blanks between words and without."""

import pytest

from stages.feedback.bag_of_words import BagOfWords

# For each: what preferred answers say, what the others say, and two answers that are new.
SAYINGS = {
    "English": ("a clear answer {}", "an unclear answer {}", "how clear", "how unclear"),
    "Chinese": ("这{}是很清楚的回答", "这{}是很含糊的回答", "说得清楚", "说得含糊"),
    "Japanese": ("これは{}明確な答えです", "これは{}曖昧な答えです", "とても明確だ", "とても曖昧だ"),
    "Thai": ("คำตอบ{}นี้ชัดเจน", "คำตอบ{}นี้คลุมเครือ", "ชัดเจนมาก", "คลุมเครือมาก"),
}


@pytest.mark.parametrize("language", SAYINGS)
def test_it_learns_words_in_every_script(language: str) -> None:
    better, worse, new_better, new_worse = SAYINGS[language]
    answers = [[better.format(number), worse.format(number)] for number in range(8)]
    one, other = BagOfWords(answers, [[0, 1]] * 8).scores([new_better, new_worse])
    assert one > other
