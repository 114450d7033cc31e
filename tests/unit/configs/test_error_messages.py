"""Messages about mistakes in an experiment: all at once, each with its source, reason and remedy."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import UserError
from configs.load import load_experiment
from tests.unit.configs.minimal import MINIMAL


def messages(file: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_experiment(file, overrides)
    return str(caught.value).splitlines()


def test_all_mistakes_are_reported_at_once_each_with_its_source(write):
    file = write("""
        name: trial
        base: {model: tiny-random, quantization: nf5}
        data:
          sft: {path: sft.jsonl, held_outt: 3}
          rm: {}
          ppo: {path: ppo.jsonl}
        sft:
          batch_size: lots
        """)
    lines = messages(file, "ppo.kl_coeff=0.1", "ppo.gamma=3")
    expected = [
        f"{file}:5: data.sft.held_outt: unknown key; did you mean data.sft.held_out? `tristage "
        "explain data.sft` lists the keys of data.sft",
        "command line (ppo.kl_coeff=0.1): ppo.kl_coeff: unknown key; did you mean ppo.kl_coef? `tristage "
        "explain ppo` lists the keys of ppo",
        f"{file}: data.rm.path: missing; allowed: text (a .jsonl, .json, .csv, .tsv or .parquet file, also "
        "with .gz or .zst; a folder; a pattern such as data/*.jsonl; or the id of a hub dataset)",
        f"{file}:9: sft.batch_size: 'lots' is not allowed; allowed: an integer ≥ 1 and ≤ 1,048,576 "
        "(global: sequences (sft), prompts (rm, ppo) per step)",
        "command line (ppo.gamma=3): ppo.gamma: 3 is not allowed; allowed: a number ≥ 0 and ≤ 1 "
        "(discount of GAE per token; 1 suits answers, whose reward comes at the end)",
    ]
    (quantization,) = [line for line in lines if line not in expected]
    assert sorted(lines) == sorted([*expected, quantization])
    assert quantization.startswith(
        f"{file}:3: base.quantization: 'nf5' is not allowed; did you mean nf4? Allowed: one of nf4, int8"
    )


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("adapter.init=pissa", "it starts by changing the weights of the base, which four roles share"),
        ("adapter.init=PiSSA_niter_4", "it starts by changing the weights of the base"),
        ("adapter.init=olora", "it starts by changing the weights of the base"),
        (
            "sft.method=bottleneck",
            "PEFT has no bottleneck adapters, and AdapterHub's `adapters` does not install",
        ),
    ],
)
def test_a_value_known_from_elsewhere_is_refused_with_the_reason(minimal, override, reason):
    (line,) = messages(minimal, override)
    key, _, value = override.partition("=")
    assert f"{key}: {value!r} is not here: {reason}" in line and "; allowed: one of " in line


def test_a_key_in_the_wrong_section_names_the_right_one(minimal):
    (line,) = messages(minimal, "kl_coef=0.1")
    assert "kl_coef: unknown key; did you mean ppo.kl_coef? Allowed here: name, seed, base" in line


def test_a_long_list_of_keys_is_left_to_explain(minimal):
    (line,) = messages(minimal, "ppo.zork=1")
    assert line.endswith("ppo.zork: unknown key; `tristage explain ppo` lists the keys of ppo")


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("seed", "no value; write seed=VALUE"),
        ("", "unknown key; allowed here: name, seed,"),
        ("=3", "unknown key"),
        (
            "seed.x=1",
            "seed.x: unknown key; seed holds an integer ≥ 0 and ≤ 9,223,372,036,854,775,807, not keys",
        ),
        ("pppo.gamma=1", "did you mean ppo?"),
        ("sft.epochs={", "sft.epochs: not YAML, line 1 column 2"),
        ("name=", "name: null is not allowed; allowed: text of at most 100 letters matching"),
        ("name=2024", "put quotes around it"),
        ("sft=3", "sft: 3 is not allowed; allowed: a section with the keys learning_rate"),
        ("adapter.target_modules=3", "3 is not allowed; allowed: all-linear or a list of text"),
        ("tracking.tags=[a, 1]", "tracking.tags[1]: 1 is not allowed"),
        ("tracking={wandb: ofline}", "did you mean offline?"),
        ("ppo.kl_coef=.nan", "nan is not allowed"),
    ],
)
def test_a_wrong_override_is_one_message_that_names_it(minimal, override, reason):
    (line,) = messages(minimal, override)
    assert line.startswith(f"command line ({override}): ") and reason in line


def test_keys_that_contradict_each_other_name_the_override(write):
    file = write(MINIMAL + "ppo: {batch_size: 8}\n")
    (line,) = messages(file, "ppo.minibatches=3")
    assert line == f"{file}:8 with ppo.minibatches=3: ppo: minibatches (3) must divide batch_size (8)"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", ": empty; it needs the keys name, base, data"),
        ("# nothing\n", ": empty"),
        ("- 1\n", ": holds list [1], not a mapping"),
        ("trial\n", ": holds str 'trial', not a mapping"),
        (
            "base:\n\tmodel: x\n",
            ": not YAML, line 2 column 1: found character '\\t' that cannot start any token; "
            "indent with spaces, not tabs",
        ),
        ("a: b: c\n", ": not YAML, line 1 column 5: mapping values are not allowed here"),
        ("a: [1\n", ": not YAML, line 2 column 1"),
        ("a: 1\n---\nb: 2\n", ": not YAML, line 2 column 1: but found another document"),
        ("a: !!timestamp 2024-99-99\n", ": not YAML: month must be in 1..12"),
        ("a: !!python/name:os.system\n", ": not YAML, line 1 column 4"),
        (b"name: \xff\n", ": not UTF-8: byte 6 is 0xff"),
        ("name: \x00\n", ": not YAML: unacceptable character #x0000"),
    ],
)
def test_a_broken_file_is_one_message_beside_those_of_the_command_line(write, text, reason):
    file = write(text)
    first, *rest = messages(file, "ppo.gamma=3", "nonsense=1")
    assert first.startswith(f"{file}{reason}")
    assert [line[:12] for line in rest] == ["command line"] * 2


def test_a_missing_file_is_named(tmp_path):
    (line,) = messages(tmp_path / "nowhere.yaml")
    assert line.startswith(f"{tmp_path}/nowhere.yaml: cannot be read: No such file or directory")
    (line,) = messages(tmp_path)
    assert "Is a directory" in line


def test_a_key_given_twice_is_reported_with_both_lines(write):
    file = write(MINIMAL + "sft:\n  epochs: 1\n  batch_size: 4\n  epochs: 2\nsft: {}\n")
    assert messages(file) == [
        f"{file}:11: sft.epochs: given twice, first on line 9",
        f"{file}:12: sft: given twice, first on line 8",
    ]


def test_keys_that_are_not_text_are_unknown_keys(write):
    assert all("unknown key" in line for line in messages(write(MINIMAL + "1: 2\non: 3\n~: 4\n")))


def test_an_endless_yaml_ends(write):
    assert messages(write("a: &a {b: *a}\nbase: &b {model: *b}\n"))


@given(text=st.text(alphabet="ab:{}[]&*!|>-#'\"\n \t%@`,?1.~", max_size=40))
def test_any_file_gives_a_user_error(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(text)
    with pytest.raises(UserError):
        load_experiment(file, [text])
