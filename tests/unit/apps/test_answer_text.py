"""Text grows with its tokens, and never shrinks: half characters and stop strings are held back."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from apps.answers.text import AnswerText


@pytest.fixture(scope="module")
def sentence_pieces() -> PreTrainedTokenizerFast:
    """A tokenizer like those of SentencePiece: a blank is a part of the word after it."""
    words = ["▁Once", "▁upon", "▁a", "▁time", ",", "</s>"]
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=",")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def test_a_continuation_keeps_the_blank_at_its_beginning(sentence_pieces) -> None:
    prompt = sentence_pieces("Once upon a")["input_ids"]
    for before, text in ((prompt[-1:], " time"), ([], "time")):
        answer = AnswerText(sentence_pieces, before=before)
        answer.add(sentence_pieces.convert_tokens_to_ids("▁time"))
        assert answer.text == text
        answer.add(sentence_pieces.eos_token_id)
        answer.end()
        assert answer.text == text


class Letters:
    """A stand-in for a tokenizer: the ids are the bytes of the text."""

    def decode(self, ids, **_):
        return bytes(ids).decode("utf-8", "replace")


def grown(text, stop=()):
    """The text after each byte, and at the end."""
    answer, seen = AnswerText(Letters(), stop), []
    for byte in text.encode():
        answer.add(byte)
        seen.append(answer.text)
        if answer.stopped:
            return answer, seen
    answer.end()
    return answer, [*seen, answer.text]


def test_half_a_character_is_held_back():
    assert grown("aé🙂")[1] == ["a", "a", "aé", "aé", "aé", "aé", "aé🙂", "aé🙂"]


def test_text_ends_before_a_stop_string():
    answer, seen = grown("one\n\ntwo", ["\n\n"])
    assert answer.stopped and answer.text == "one"
    assert "one\n" not in seen


def test_what_might_have_been_a_stop_string_comes_late():
    answer, seen = grown("a STO a STOP", ["STOP!"])
    assert seen[3:6] == ["a ", "a ", "a STO "]
    assert not answer.stopped and answer.text == "a STO a STOP"


@pytest.mark.parametrize("stop", [["b", "abc"], ["abc", "b"]])
def test_the_earliest_of_several_stop_strings_counts(stop):
    assert grown("xxabcb", stop)[0].text in ("xxa", "xx")


@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_it_only_grows_and_holds_no_stop_string(text, stop):
    text = text.encode("utf-8", "ignore").decode()
    stop = [each.encode("utf-8", "ignore").decode() or "x" for each in stop]
    answer, seen = grown(text, stop)
    assert all(later.startswith(earlier) for earlier, later in pairwise(seen))
    assert not any(each in answer.text for each in stop)
    assert text.startswith(answer.text)
    assert answer.stopped or answer.text == text
