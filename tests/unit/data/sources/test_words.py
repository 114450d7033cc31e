"""What a word is."""

import re

import pytest

from data.sources.near_duplicates import shingles
from data.sources.words import WORD


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("two words, 3!", ["two", "words", "3"]),
        ("用GPT写诗。", ["用", "GPT", "写", "诗"]),
        ("API文档", ["API", "文", "档"]),
        ("データ", ["デ", "ー", "タ"]),
        ("น้ำ", ["น", "้", "ำ"]),
        ("두 낱말", ["두", "낱말"]),
    ],
)
def test_a_character_is_a_word_where_no_blank_parts_words(text: str, words: list[str]) -> None:
    assert re.findall(WORD, text) == words


def test_shingles_do_not_depend_on_where_latin_letters_stand() -> None:
    assert shingles("API文档")[0] == "api 文 档".encode()
