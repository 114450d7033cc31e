"""Which tokens of a conversation SFT learns, against the marks that templates themselves have."""

from pathlib import Path

import pytest
import trl
from transformers import AutoTokenizer

from configs.errors import UserError
from configs.schema import Data, Source
from data.batches import collate, tokenize
from data.batches.pack import pack
from data.batches.tokenize import Demonstration, demonstrations
from data.sources.normalise import normalise
from stages.models.demo_models import embedded_model
from tests.support.turns import assistant, user

TRL = Path(trl.__file__).parent / "chat_templates"
PLAIN = Path(__file__).parents[4] / "configs" / "chat" / "plain.jinja"
TALK = [user("Sky?"), assistant("Blue."), user("Sure?"), assistant("Yes."), user("Always?"), assistant("No.")]


def data(**changes):
    source = Source(path="a")
    return Data(sft=source, rm=source, ppo=source, **changes)


def tokenizer_of(template, end="<|im_end|>"):
    tokenizer = AutoTokenizer.from_pretrained(embedded_model("tiny-random"))
    tokenizer.add_special_tokens({"eos_token": end})
    tokenizer.chat_template = template if isinstance(template, str) else template.read_text()
    return tokenizer


def learned(tokenizer, messages, **changes):
    ((example,), _) = demonstrations(
        [normalise({"messages": messages}, "demonstrations")], tokenizer, data(**changes)
    )
    return example


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (PLAIN, "<|im_end|>"),
        (TRL / "llama3_training.jinja", "<|eot_id|>"),
        (TRL / "cohere_training.jinja", "<|END_OF_TURN_TOKEN|>"),
        (TRL / "qwen2_5_vl_training.jinja", "<|im_end|>"),
        (TRL / "gemma_training.jinja", "<end_of_turn>"),
        (TRL / "qwen3_training.jinja", "<|im_end|>"),
    ],
    ids=lambda value: str(value)[-22:],
)
def test_all_turns_are_those_that_the_template_marks(template, end):
    """TRL's `assistant_only_loss` learns these tokens. It also learns the line break after a turn."""
    tokenizer = tokenizer_of(template, end)
    marked = tokenizer.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    example = learned(tokenizer, TALK)
    ids, mask = [*example.prompt_ids, *example.completion_ids], example.completion_mask
    assert ids == marked["input_ids"][: len(ids)]
    pairs = list(zip(ids, mask, marked["assistant_masks"], strict=False))
    assert all(theirs for _, ours, theirs in pairs if ours)
    only_theirs = [tokenizer.decode([token]) for token, ours, theirs in pairs if theirs and not ours]
    assert not "".join(only_theirs).strip()
    kept = tokenizer.decode([token for token, ours, _ in pairs if ours])
    assert [text in kept for text in ("Blue." + end, "Yes." + end, "No." + end)] == [True] * 3


@pytest.mark.parametrize(
    ("template", "end", "expected"),
    [
        # It adds an empty thought to the last turn only.
        ("qwen3", "<|im_end|>", "Blue.<|im_end|>Yes.<|im_end|><think>\n\n</think>\n\nNo.<|im_end|>"),
        # It ends the conversation with the end-of-turn token, and each turn with another.
        ("phi3", "<|endoftext|>", "Blue.<|end|>\nYes.<|end|>\nNo.<|end|>\n<|endoftext|>"),
    ],
)
def test_templates_that_render_the_last_turn_differently(template, end, expected):
    tokenizer = tokenizer_of(TRL / f"{template}.jinja", end)
    example = learned(tokenizer, TALK)
    ids = [*example.prompt_ids, *example.completion_ids]
    assert (
        tokenizer.decode([i for i, mark in zip(ids, example.completion_mask, strict=True) if mark])
        == expected
    )


def test_train_on_last_learns_the_last_turn_alone():
    tokenizer = tokenizer_of(PLAIN)
    whole, last = learned(tokenizer, TALK), learned(tokenizer, TALK, train_on="last")
    assert last.prompt_ids + last.completion_ids == whole.prompt_ids + whole.completion_ids
    assert tokenizer.decode(last.completion_ids) == "No.<|im_end|>" and last.learned is None
    assert sum(last.completion_mask) < sum(whole.completion_mask)


def test_a_turn_of_many_characters_and_few_tokens_is_whole(monkeypatch):
    """Only text that would be dropped or cut anyway is shortened before it becomes tokens."""
    talk = [*TALK[:3], assistant("They think that " * 80), *TALK[4:]]
    whole = learned(tokenizer_of(PLAIN), talk)
    monkeypatch.setattr(tokenize, "CHARACTERS_PER_TOKEN", 1)
    assert learned(tokenizer_of(PLAIN), talk) == whole
    assert len(whole.completion_ids) < 1024 < len(talk[3]["content"])


def test_one_turn_is_the_same_with_both():
    tokenizer = tokenizer_of(PLAIN)
    assert learned(tokenizer, TALK[:2]) == learned(tokenizer, TALK[:2], train_on="last")


def test_a_turn_of_weight_0_is_context():
    tokenizer = tokenizer_of(PLAIN)
    middle = [*TALK[:3], {**TALK[3], "weight": 0}, *TALK[4:]]
    example = learned(tokenizer, middle)
    ids = [*example.prompt_ids, *example.completion_ids]
    assert "Yes." in tokenizer.decode(ids)
    kept = [i for i, mark in zip(ids, example.completion_mask, strict=True) if mark]
    assert tokenizer.decode(kept) == "Blue.<|im_end|>No.<|im_end|>"


def test_a_conversation_that_is_cut_keeps_its_first_learned_turns():
    tokenizer = tokenizer_of(PLAIN)
    whole = learned(tokenizer, TALK)
    length = len(whole.prompt_ids) + len(whole.completion_ids) - 3
    cut = learned(tokenizer, TALK, overlong="truncate", max_length=length, max_prompt_length=30)
    assert cut.completion_ids == whole.completion_ids[:-3]
    assert cut.completion_mask == whole.completion_mask[:-3]


def test_the_mask_survives_packing_and_padding():
    gaps = Demonstration([1, 2], [3, 4, 5, 6], [True, False, False, True])
    (row,) = pack([gaps, Demonstration([7], [8])], max_length=8)
    assert row.completion_mask == [False, False, True, False, False, True, False, True]
    batch = collate.demonstrations([gaps, Demonstration([7], [8])], pad_id=0)
    assert batch.completion_mask.tolist() == [
        [False, False, True, False, False, True],
        [False, True, False, False, False, False],
    ]


def test_a_template_that_rewrites_earlier_turns_is_an_error():
    tokenizer = tokenizer_of(
        "{% for m in messages %}{{ loop.revindex if m.role == 'assistant' }}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(UserError, match=r"renders the prompt differently.* Or set data\.train_on to last"):
        learned(tokenizer, TALK)
