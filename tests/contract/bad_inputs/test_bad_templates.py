"""Chat templates that do not render a conversation whole, or never end; refused before training."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from configs.errors import UserError
from configs.schema import Data, Source
from data.batches import tokenize
from stages.models.demo_models import TINY_TEMPLATE
from tests.contract.bad_inputs.entry import check_message

PROMPTS = "{% for m in messages if m['role'] != 'assistant' %}"
TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
END = "{% endfor %}"
ASSISTANT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
ALL = "{% for m in messages %}"
ASKED = [{"role": "user", "content": "Sky?"}]
BLUE = [{"role": "assistant", "content": "Blue."}]
LOOP = "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}"
DOUBLING = "{% set n = namespace(t='x') %}{% for i in range(40) %}{% set n.t = n.t ~ n.t %}{% endfor %}"

QUESTION, ANSWER = "leaves out or changes what the user says", "leaves out or changes the answer"
TEMPLATES = {
    "constant": ("Hello.", QUESTION),
    "empty": ("", QUESTION),
    "no question": (
        ALL + "{% if m['role'] == 'assistant' %}" + TURN + "{% endif %}" + END + ASSISTANT,
        QUESTION,
    ),
    "no answer": (PROMPTS + TURN + END + ASSISTANT, ANSWER),
    "empty answer": (
        ALL
        + "<|im_start|>{{ m['role'] }}\n{{ m['content'] if m['role'] == 'user' }}<|im_end|>"
        + END
        + ASSISTANT,
        ANSWER,
    ),
    "first words": (ALL + TURN.replace("m['content']", "m['content'][:500]") + END + ASSISTANT, QUESTION),
    "upper case": (ALL + TURN.replace("m['content']", "m['content'] | upper") + END + ASSISTANT, QUESTION),
    "one line": (ALL + TURN.replace("m['content']", "m['content'] | replace('\n', ' ')") + END, QUESTION),
    "escaped": (ALL + TURN.replace("m['content']", "m['content'] | e") + END + ASSISTANT, QUESTION),
    "another key": (ALL + TURN.replace("m['content']", "m['text']") + END + ASSISTANT, QUESTION),
    "repr": ("{{ messages }}" + ASSISTANT, QUESTION),
    "no generation prompt": (
        ALL + TURN + END,
        "has no generation prompt: with add_generation_prompt, a prompt",
    ),
    "other prompt": (
        ALL + TURN + END + ASSISTANT.replace("assistant", "bot"),
        "renders the prompt differently without and with its answer",
    ),
    "syntax": ("{% for m in messages %}", "the chat template failed on it: Unexpected end of template"),
    "unknown name": ("{{ nothing() }}", "failed on it: 'nothing' is undefined"),
    "no attribute": ("{{ messages[0]['content'].zork() }}", "failed on it: "),
    "refusal": ("{{ raise_exception('Never.') }}", "failed on it: Never."),
    "attack": (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "failed on it: access to attribute '__class__'",
    ),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth exceeded"),
    "long loop": (LOOP, "it takes more than 5 seconds"),
    "long loop over an answer": (
        ALL + TURN + "{% if m['role'] == 'assistant' %}" + LOOP + "{% endif %}" + END + ASSISTANT,
        "it takes more than 5 seconds",
    ),
    "long power": ("{{ 7 ** (9 ** 9) }}", "failed on it: it takes more than 5 seconds"),
    "long text": (ALL + TURN + "{{ 'x' * 9000000 }}" + END + ASSISTANT, "characters of a short text"),
    "very long text": ("{{ 'x' * 10 ** 10 }}", "it needs more than 2 GiB of memory"),
    "doubled text": (DOUBLING, "it needs more than 2 GiB of memory"),
    "padded text": ("{{ 'x'.center(10 ** 10) }}", "it needs more than 2 GiB of memory"),
}


OF_A_FILE = ("constant", "no answer", "no generation prompt", "unknown name", "long loop over an answer")


def config(**changes) -> Data:
    source = Source(path="a")
    return Data(sft=source, rm=source, ppo=source, **changes)


@pytest.fixture
def tokenizer(tiny_folder):
    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_of_the_base(name, tokenizer):
    tokenizer.chat_template, part = TEMPLATES[name]
    row = {"prompt": ASKED, "completion": BLUE, "where": "a.jsonl, line 3"}
    with pytest.raises(UserError) as caught:
        tokenize.demonstrations([row], tokenizer, config())
    check_message(str(caught.value), "a.jsonl, line 3: ", part, "et data.chat_template to a template that ")


@pytest.mark.parametrize("name", OF_A_FILE)
def test_template_of_a_file(name, tokenizer, tmp_path):
    template, part = TEMPLATES[name]
    (tmp_path / "own.jinja").write_text(template)
    with pytest.raises(UserError) as caught:
        tokenize.apply_template(tokenizer, config(chat_template=str(tmp_path / "own.jinja")))
    check_message(str(caught.value), f"data.chat_template, {tmp_path}/own.jinja: ", part)


@pytest.mark.parametrize(
    ("roles", "part"),
    [
        (["system", "user"], "leaves out or changes what the system says"),
        (["user", "assistant", "user"], "leaves out or changes what the assistant says"),
    ],
)
def test_template_that_leaves_out_other_messages(roles, part, tokenizer):
    kept = "{% for m in messages if m['role'] == 'user' or m is sameas messages[-1] %}"
    tokenizer.chat_template = kept + TURN + END + ASSISTANT
    messages = [{"role": role, "content": f"{role} says"} for role in roles]
    tokenize.prompts([{"prompt": ASKED}], tokenizer, config())  # which it does not leave out
    with pytest.raises(UserError) as caught:
        tokenize.prompts([{"prompt": messages, "where": "line 3"}], tokenizer, config())
    check_message(str(caught.value), "line 3: ", part, "Set data.chat_template")


def test_template_that_never_ends_on_one_row(tokenizer):
    """After it was stopped, other rows are rendered."""
    tokenizer.chat_template = (
        TINY_TEMPLATE + "{% if 'zork' in messages[0]['content'] %}" + LOOP + "{% endif %}"
    )
    rows = [{"prompt": text, "where": f"line {number}"} for number, text in enumerate(("Sky?", "zork"), 1)]
    with pytest.raises(UserError) as caught:
        tokenize.prompts(rows, tokenizer, config(chat=True))
    check_message(str(caught.value), "line 2: the chat template failed on it: it takes more than 5 seconds")
    assert tokenize.prompts(rows[:1], tokenizer, config(chat=True))[1].kept == 1


def test_several_templates_without_a_default(tokenizer):
    tokenizer.chat_template = {"one": TINY_TEMPLATE, "two": TINY_TEMPLATE}
    with pytest.raises(UserError) as caught:
        tokenize.prompts([{"prompt": ASKED, "where": "line 3"}], tokenizer, config())
    check_message(str(caught.value), "line 3: ", "multiple chat templates with no default")


SOUND = {
    "always with a prompt": ALL + TURN + END + "<|im_start|>assistant\n",
    "answer at once": ALL + "{{ m['content'] }}<|im_end|>" + END,
    "trimmed": ALL + TURN.replace("m['content']", "m['content'] | trim") + END + ASSISTANT,
    "instructions": ALL
    + "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    + "{% else %} {{ m['content'] }}<|im_end|>{% endif %}"
    + END,
    # Qwen 3 renders an empty thought before an answer that has none. The policy learns it.
    "thought": ALL
    + TURN.replace("\n{{", "\n{{ '<think>\n\n</think>\n\n' if m['role'] == 'assistant' }}{{", 1)
    + END
    + ASSISTANT,
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_template(name, tokenizer):
    tokenizer.chat_template = SOUND[name]
    ((demonstration,), _) = tokenize.demonstrations(
        [{"prompt": ASKED, "completion": BLUE}], tokenizer, config()
    )
    assert tokenizer.decode(demonstration.completion_ids).strip().endswith("Blue.<|im_end|>")
    assert "Sky?" in tokenizer.decode(demonstration.prompt_ids)
