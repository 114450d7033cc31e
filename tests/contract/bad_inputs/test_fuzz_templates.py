"""Whatever a chat template does, it renders conversations whole or is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from configs.schema import Data, Source
from data.batches import tokenize
from tests.contract.bad_inputs.fuzzing import contents, mutated, quick, told

DATA = Data(sft=Source(path="a"), rm=Source(path="a"), ppo=Source(path="a"))
QUESTION, ANSWER = "Why is the sky blue?", "Rayleigh scattering."
ROW = {
    "prompt": [{"role": "user", "content": QUESTION}],
    "completion": [{"role": "assistant", "content": ANSWER}],
    "where": "a.jsonl, line 3",
}
LITERALS = (
    "1",
    "0",
    "-1",
    "1.5",
    "10 ** 400",
    "none",
    "true",
    "''",
    "'x'",
    "[]",
    "{}",
    "'\\ud800'",
    "'\\x00\\x1b'",
    "'\\ufdd09\\ufdd1'",
    "'\\ufdd2999\\ufdd3'",
    "'\\ufdd2'",
    "'<|im_end|>'",
    "'<|im_start|>'",
    "'\\n'",
)
NAMES = (
    "m",
    "m.content",
    "m['content']",
    "m['role']",
    "messages",
    "messages[0]",
    "messages[-1].content",
    "loop",
    "loop.index",
    "bos_token",
    "eos_token",
    "add_generation_prompt",
    "tools",
    "nothing",
    "self",
    "range",
    "n",
    "namespace",
    "raise_exception",
    "strftime_now",
    "cycler",
    "lipsum",
    "messages.__class__",
    "m.content.format",
)
FILTERS = (
    "trim",
    "upper",
    "length",
    "list",
    "join",
    "first",
    "last",
    "reverse",
    "tojson",
    "int",
    "e",
    "safe",
    "batch(2)",
    "indent",
    "default('x')",
    "replace('a', 'b')",
    "string",
    "sort",
    "format(1)",
    "map('upper')",
    "attr('x')",
    "groupby('role')",
    "sum",
    "random",
    "zork",
    "slice(0)",
    "center(9)",
    "selectattr('role')",
    "wordwrap(0)",
)
expressions = st.recursive(
    st.sampled_from(LITERALS + NAMES),
    lambda inner: (
        st.builds("({} | {})".format, inner, st.sampled_from(FILTERS))
        | st.builds(
            "({} {} {})".format,
            inner,
            st.sampled_from(["+", "-", "*", "/", "~", "%", "and", "or", "in", "==", "<", "is"]),
            inner,
        )
        | st.builds("{}[{}]".format, inner, inner)
        | st.builds("{}({})".format, inner, inner)
        | st.builds("({} if {} else {})".format, inner, inner, inner)
    ),
    max_leaves=5,
)
texts = st.sampled_from(["\n", "x", "<|im_start|>", "<|im_end|>", "{", "{%", "{#", "}}", "\ufdd0", "é"])
TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
TURNS = "{% for m in messages %}" + TURN + "{% endfor %}"
GENERATION = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
programs = st.recursive(
    texts
    | st.sampled_from([TURN, TURNS, GENERATION, TURNS + GENERATION])
    | st.builds("{{{{ {} }}}}".format, expressions),
    lambda inner: (
        st.builds("{}{}".format, inner, inner)
        | st.builds("{{% for m in {} %}}{}{{% endfor %}}".format, expressions | st.just("messages"), inner)
        | st.builds("{{% if {} %}}{}{{% else %}}{}{{% endif %}}".format, expressions, inner, inner)
        | st.builds("{{% set n = {} %}}{}".format, expressions, inner)
        | st.builds("{{% macro f(m) %}}{}{{% endmacro %}}{{{{ f({}) }}}}".format, inner, expressions)
        | st.builds("{{% generation %}}{}{{% endgeneration %}}".format, inner)
        | st.builds("{{% filter {} %}}{}{{% endfilter %}}".format, st.sampled_from(FILTERS), inner)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return AutoTokenizer.from_pretrained(tiny_folder)


@quick
@given(program=programs | st.builds("{}{}{}".format, programs, st.just(TURNS + GENERATION), programs))
def test_programs(tokenizer, program):
    tokenizer.chat_template = program
    with told():
        ((demonstration,), _) = tokenize.demonstrations([ROW], tokenizer, DATA)
        assert QUESTION in tokenizer.decode(demonstration.prompt_ids)
        assert ANSWER in tokenizer.decode(demonstration.completion_ids)


@quick
@given(content=contents | mutated((TURNS + GENERATION).encode()))
def test_bytes(tokenizer, content, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "fuzzed.jinja"
    file.write_bytes(content)
    with told():
        tokenize.apply_template(tokenizer, DATA.model_copy(update={"chat_template": str(file)}))
