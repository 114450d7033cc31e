"""Rows become token ids. The tests decode them, or count on a toy vocabulary."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from trl.data_utils import apply_chat_template

from configs.errors import UserError
from configs.schema import Data, Source
from data.batches.fit import Counts
from data.batches.tokenize import (
    Demonstration,
    Prompt,
    Ranking,
    apply_template,
    demonstrations,
    end_of_turn,
    prompts,
    rankings,
)
from stages.models.demo_models import embedded_model

QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sky?"}]
BLUE = [{"role": "assistant", "content": "Blue."}]
GREEN = [{"role": "assistant", "content": "Green."}]
RENDERED = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nSky?<|im_end|>\n<|im_start|>assistant\n"
)
END, PAD = 1, 0


@pytest.fixture(scope="module")
def chatml():
    """The tiny model's tokenizer: ChatML, with different end-of-turn and pad tokens."""
    return AutoTokenizer.from_pretrained(embedded_model("tiny-random"))


@pytest.fixture
def toy():
    """One token per letter: "a" is 2, "b" is 3, ..., "z" is 27; no chat template."""
    vocabulary = {"<pad>": PAD, "<end>": END, "?": 28} | {chr(ord("a") + i): 2 + i for i in range(26)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


def config(**changes):
    source = Source(path="a")
    return Data(sft=source, rm=source, ppo=source, **changes)


def test_conversation_is_rendered_by_the_template(chatml):
    row = {"prompt": QUESTION, "completion": BLUE}
    ((demonstration,), counts) = demonstrations([row], chatml, config())
    assert chatml.decode(demonstration.prompt_ids) == RENDERED
    assert chatml.decode(demonstration.completion_ids) == "Blue.<|im_end|>"  # and no line break after it
    assert demonstration.completion_ids[-1] == end_of_turn(chatml) == 2 != chatml.pad_token_id
    assert counts == Counts(kept=1)


def test_prompt_and_completion_equal_trls_up_to_the_end_of_the_turn(chatml):
    row = {"prompt": QUESTION, "completion": BLUE}
    ((demonstration,), _) = demonstrations([row], chatml, config())
    expected = apply_chat_template(row, chatml)
    assert chatml.decode(demonstration.prompt_ids) == expected["prompt"]
    assert chatml.decode(demonstration.completion_ids) + "\n" == expected["completion"]


def test_strings_become_turns_with_data_chat(chatml):
    row = {"prompt": "Sky?", "completion": "Blue."}
    ((demonstration,), _) = demonstrations([row], chatml, config(chat=True))
    assert (
        chatml.decode(demonstration.prompt_ids) == "<|im_start|>user\nSky?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chatml.decode(demonstration.completion_ids) == "Blue.<|im_end|>"


def test_strings_are_plain_text_without_data_chat(chatml, toy):
    row = {"prompt": "Sky?", "completion": " Blue."}
    ((demonstration,), _) = demonstrations([row], chatml, config())
    assert chatml.decode(demonstration.prompt_ids + demonstration.completion_ids) == "Sky? Blue.<|im_end|>"
    assert demonstrations([{"prompt": "ab", "completion": "cd"}], toy, config()) == (
        [Demonstration([2, 3], [4, 5, END])],
        Counts(kept=1),
    )


def test_prompt_tokens_of_plain_text_are_those_that_generation_sees(chatml):
    """The blank would merge with the next word. The prompt must keep its tokens without the completion."""
    row = {"prompt": "The sky is ", "completion": "blue"}
    joined = chatml("The sky is blue")["input_ids"]
    prompt_ids = chatml("The sky is ")["input_ids"]
    assert joined[: len(prompt_ids)] != prompt_ids
    ((demonstration,), _) = demonstrations([row], chatml, config())
    ((prompt,), _) = prompts([row], chatml, config())
    assert demonstration.prompt_ids == prompt.prompt_ids == prompt_ids
    assert chatml.decode(demonstration.completion_ids) == "blue<|im_end|>"


def test_end_is_not_added_twice(chatml):
    row = {"prompt": "Sky?", "completion": " Blue.<|im_end|>"}
    ((demonstration,), _) = demonstrations([row], chatml, config())
    assert demonstration.completion_ids.count(2) == 1


def test_rankings_share_the_prompt(chatml):
    row = {"prompt": QUESTION, "completions": [BLUE, GREEN], "ranks": [0, 1]}
    ((ranking,), counts) = rankings([row], chatml, config())
    assert (ranking.prompt, ranking.ranks, counts) == (QUESTION, [0, 1], Counts(kept=1))
    assert chatml.decode(ranking.prompt_ids) == RENDERED
    assert [chatml.decode(ids) for ids in ranking.completion_ids] == ["Blue.<|im_end|>", "Green.<|im_end|>"]


def test_sampled_tokens_are_used_unchanged(toy):
    row = {"prompt": "ab", "completions": ["c", "d"], "completion_ids": [[4, END], [5, 5]], "ranks": [0, 1]}
    assert rankings([row], toy, config())[0] == [Ranking("ab", [2, 3], [[4, END], [5, 5]], [0, 1])]


def test_prompts(chatml, toy):
    ((prompt,), _) = prompts([{"prompt": QUESTION}], chatml, config())
    assert (prompt.prompt, prompt.text) == (QUESTION, "Sky?")
    assert chatml.decode(prompt.prompt_ids) == RENDERED
    assert prompts([{"prompt": "ab"}], toy, config())[0] == [Prompt("ab", "ab", [2, 3])]


# Over-long examples

SHORT, LONG_PROMPT = {"prompt": "ab", "completion": "c"}, {"prompt": "abcdef", "completion": "gh"}
LONG_ANSWER, FITS = {"prompt": "ab", "completion": "cdefgh"}, {"prompt": "abcd", "completion": "ef"}
LENGTHS = {"max_prompt_length": 4, "max_length": 7}  # FITS: 4 and, with the end, 7


def test_over_long_demonstrations_are_dropped_and_counted(toy):
    kept, counts = demonstrations([SHORT, LONG_PROMPT, LONG_ANSWER, FITS], toy, config(**LENGTHS))
    assert kept == [Demonstration([2, 3], [4, END]), Demonstration([2, 3, 4, 5], [6, 7, END])]
    assert counts == Counts(kept=2, truncated=0, dropped=2)


def test_over_long_demonstrations_are_truncated_and_counted(toy):
    data = config(overlong="truncate", **LENGTHS)
    kept, counts = demonstrations([SHORT, LONG_PROMPT, LONG_ANSWER], toy, data)
    assert kept == [
        Demonstration([2, 3], [4, END]),
        Demonstration([4, 5, 6, 7], [8, 9, END]),  # the prompt's last four
        Demonstration([2, 3], [4, 5, 6, 7, 8]),  # the answer's first five, without an end
    ]
    assert counts == Counts(kept=3, truncated=2, dropped=0)


def test_a_ranking_is_over_long_when_any_answer_is(toy):
    row = {"prompt": "ab", "completions": ["c", "cdefgh"], "ranks": [0, 1]}
    fits = {"prompt": "ab", "completions": ["c", "d"], "ranks": [0, 1]}
    assert rankings([row, fits], toy, config(**LENGTHS))[1] == Counts(kept=1, dropped=1)
    kept, counts = rankings([row, fits], toy, config(overlong="truncate", **LENGTHS))
    assert kept[0].completion_ids == [[4, END], [4, 5, 6, 7, 8]]
    assert counts == Counts(kept=2, truncated=1)


def test_completions_that_are_equal_once_truncated_make_no_pair(toy):
    data = config(overlong="truncate", **LENGTHS)
    cut = {"prompt": "ab", "completions": ["cdefgh", "cdefgi"], "ranks": [0, 1]}
    apart = {"prompt": "ab", "completions": ["c", "d"], "ranks": [0, 1]}
    kept, counts = rankings([cut, apart], toy, data)
    assert kept == [Ranking("ab", [2, 3], [[4, END], [5, END]], [0, 1])]
    assert counts == Counts(kept=1, truncated=0, without_pair=1)
    assert "dropped as their completions are the same: 1" in str(counts)
    with pytest.raises(UserError, match="none of the 1 rankings has two different completions"):
        rankings([cut], toy, data)


@pytest.mark.parametrize(
    ("completions", "ranks", "left"),
    [
        ("cce", [0, 1, 2], ([4, 6], [0, 2])),  # next to each other: the first stays
        ("cec", [0, 1, 2], ([], [])),  # a contradiction: none stays, and one answer makes no pair
        ("cecf", [0, 1, 2, 3], ([6, 7], [1, 3])),
        ("cce", [0, 0, 1], ([4, 4, 6], [0, 0, 1])),  # a tie makes no pair of the copies
    ],
)
def test_copies_that_are_ranked_apart_are_dropped_and_counted(toy, completions, ranks, left):
    row = {"prompt": "ab", "completions": list(completions), "ranks": ranks}
    other = {"prompt": "ab", "completions": ["c", "d"], "ranks": [0, 1]}
    kept, counts = rankings([row, other], toy, config())
    ids, left_ranks = left
    expected = [Ranking("ab", [2, 3], [[token, END] for token in ids], left_ranks)] if ids else []
    assert kept == [*expected, Ranking("ab", [2, 3], [[4, END], [5, END]], [0, 1])]
    assert counts.without_pair == (not ids)
    assert counts.copies == (len(completions) - len(ids) if ids else 0)


def test_over_long_prompts(toy):
    rows = [{"prompt": "abcd"}, {"prompt": "abcde"}]
    assert prompts(rows, toy, config(**LENGTHS))[1] == Counts(kept=1, dropped=1)
    kept, counts = prompts(rows, toy, config(overlong="truncate", **LENGTHS))
    assert [example.prompt_ids for example in kept] == [[2, 3, 4, 5], [3, 4, 5, 6]]
    assert counts == Counts(kept=2, truncated=1)


def test_truncated_conversation_keeps_the_generation_prompt(chatml):
    row = {"prompt": [{"role": "user", "content": "word " * 50}], "completion": BLUE}
    data = config(overlong="truncate", max_prompt_length=20, max_length=60)
    ((demonstration,), _) = demonstrations([row], chatml, data)
    assert len(demonstration.prompt_ids) == 20
    assert chatml.decode(demonstration.prompt_ids).endswith(" <|im_end|>\n<|im_start|>assistant\n")


def test_nothing_left_is_an_error(toy):
    message = (
        r"none of the 2 examples fits: the shortest prompt has 2 tokens \(data.max_prompt_length: 4\), the "
        r"shortest example 9 \(data.max_length: 7\)"
    )
    with pytest.raises(UserError, match=message):
        demonstrations([LONG_PROMPT, LONG_ANSWER], toy, config(**LENGTHS))
    assert demonstrations([], toy, config()) == ([], Counts())


def test_counts_as_text():
    assert (
        str(Counts(1200, 34, 5))
        == "1,200 of 1,205 examples kept, 34 of them truncated; over-long and dropped: 5"
    )


# Templates


def test_template_from_a_file(toy, tmp_path):
    (tmp_path / "plain.jinja").write_text("{% for m in messages %}{{ m['content'] }}<end>{% endfor %}")
    apply_template(toy, config(chat_template=f"{tmp_path}/plain.jinja"))
    ((demonstration,), _) = demonstrations([{"prompt": "ab", "completion": "c"}], toy, config(chat=True))
    assert demonstration == Demonstration([2, 3, END], [4, END], chat=True)
    apply_template(toy, config())  # without a template, the tokenizer keeps its own
    assert toy.chat_template is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        ("{% for m in messages %}", "the chat template failed"),
        ("{{ nothing() }}", "failed"),
    ],
)
def test_bad_template_is_named(toy, tmp_path, content, message):
    if content is not None:
        (tmp_path / "bad.jinja").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        apply_template(toy, config(chat_template=f"{tmp_path}/bad.jinja"))
    assert str(caught.value).startswith("data.chat_template") and "bad.jinja" in str(caught.value)


def test_conversation_without_a_template_is_an_error(toy):
    row = {"prompt": QUESTION, "completion": BLUE, "where": "a.jsonl, line 3"}
    with pytest.raises(UserError, match=r"a\.jsonl, line 3: .* no chat template. Set data\.chat_template"):
        demonstrations([row], toy, config())


def test_row_that_the_template_refuses_is_named(toy):
    toy.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(UserError, match=r"line 3: the chat template failed on it: System role not supported"):
        prompts([{"prompt": QUESTION, "where": "a.jsonl, line 3"}], toy, config())


def test_template_whose_prompt_is_not_a_prefix_is_an_error(toy):
    """Like DeepSeek-R1's: the generation prompt opens a thought that a whole conversation lacks."""
    toy.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}xy{% endif %}"
    )
    row = {"prompt": "ab", "completion": "cd", "where": "a.jsonl, line 3"}
    with pytest.raises(
        UserError,
        match=r"line 3: .* Without it, the prompt ends with 'x ?y'; with the answer it continues with 'c ?d'",
    ):
        demonstrations([row], toy, config(chat=True))


def test_tokenizer_without_an_end_is_an_error(toy):
    toy.eos_token = None
    with pytest.raises(UserError, match="has no eos_token"):
        demonstrations([SHORT], toy, config())


def test_of_a_text_without_a_prompt_all_but_the_first_token_is_learned(toy, chatml):
    rows = [{"prompt": "", "completion": text} for text in ("abc", "z")]
    (abc, z), _ = demonstrations(rows, toy, config())
    assert (abc.prompt_ids, abc.completion_ids) == ([2], [3, 4, END])
    assert (z.prompt_ids, z.completion_ids) == ([27], [END])
    (story,), _ = demonstrations([{"prompt": "", "completion": "Once upon a time."}], chatml, config())
    assert chatml.decode(story.prompt_ids + story.completion_ids) == "Once upon a time.<|im_end|>"
    assert len(story.prompt_ids) == 1


def test_of_a_text_all_is_learned_if_the_tokenizer_begins_it_with_a_token(toy):
    toy._tokenizer.post_processor = processors.TemplateProcessing(
        single="<pad> $A", special_tokens=[("<pad>", PAD)]
    )
    ((abc,), _) = demonstrations([{"prompt": "", "completion": "abc"}], toy, config())
    assert (abc.prompt_ids, abc.completion_ids) == ([PAD], [2, 3, 4, END])


def test_a_text_is_no_turn_of_a_chat(chatml):
    row = {"prompt": "", "completion": "Once.", "where": "a.jsonl, line 1"}
    with pytest.raises(UserError, match=r"a\.jsonl, line 1: a text without a prompt is no turn of a chat"):
        demonstrations([row], chatml, config(chat=True))
