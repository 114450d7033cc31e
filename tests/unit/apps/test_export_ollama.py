"""The Modelfile of a GGUF file: Ollama builds the prompts of the training, or its guess is told."""

from __future__ import annotations

from copy import deepcopy

import pytest

from apps.export import usage
from apps.export.ollama import default_system, modelfile, template_lines
from tests.support.runs import ROOT
from tests.unit.apps.test_export_card import toy_run

FIRST = "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are Q.<|im_end|>\\n' }}{% endif %}"
TURNS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
)
ANSWER = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
PLAIN = TURNS + ANSWER
CHAT_IN_CHATML = '''FROM ./a.gguf
TEMPLATE """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
SYSTEM """You are Q."""
PARAMETER stop "<|im_end|>"
PARAMETER temperature 0.7
PARAMETER top_p 1
PARAMETER top_k 0
PARAMETER num_predict 128
PARAMETER repeat_penalty 1
'''


@pytest.mark.parametrize(
    ("template", "system"),
    [
        ((ROOT / "configs/chat/plain.jinja").read_text(), ""),
        (PLAIN, ""),
        (FIRST + PLAIN, "You are Q."),
        (FIRST.replace("Q", 'a "Q"') + PLAIN, None),  # a Modelfile cannot quote it
        (FIRST.replace("system\\n", "system: ") + PLAIN, None),
        ("<s>" + PLAIN, None),
        (PLAIN.replace("m.content", "m.content | trim"), None),
        (PLAIN.replace("im_end", "end"), None),
        (PLAIN.replace("assistant", "assistant\\n<think>"), None),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}" + PLAIN, None),
        (None, None),
    ],
)
def test_chatml_is_recognised_by_what_it_writes(tiny_tokenizer, template, system) -> None:
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.chat_template = template
    assert default_system(tokenizer) == system


def test_the_modelfile_of_a_chat_in_chatml(tiny_tokenizer, tmp_path) -> None:
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.chat_template = FIRST + PLAIN
    run = toy_run(tmp_path, data__chat=True, ppo__rollout__temperature=0.7)
    assert modelfile(run, "a.gguf", template_lines(run, tokenizer)) == CHAT_IN_CHATML


def test_a_text_is_continued_as_it_is(tiny_tokenizer, tmp_path) -> None:
    run = toy_run(tmp_path, data__chat=False)
    assert 'TEMPLATE "{{ .Prompt }}"\n' in modelfile(run, "a.gguf", template_lines(run, tiny_tokenizer))


def test_a_guess_of_ollama_is_told(tiny_tokenizer, tmp_path) -> None:
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "<s>" + PLAIN
    run = toy_run(tmp_path, data__chat=True)
    assert template_lines(run, tokenizer) == []
    card = usage.gguf(run, "a.gguf", usage.guessed_template(run, "a.gguf"))
    assert "Ollama guesses the chat template" in card and "`ollama show --template toy`" in card
    assert "not tried in Ollama" in usage.gguf(run, "a.gguf", None)
