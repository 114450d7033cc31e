"""Reading an experiment: precedence, paths, what is said about mistakes, and what a stage's hash covers."""

import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import UserError
from configs.identity import changed_keys, stage_hash
from configs.load import dump_experiment, load_experiment
from configs.schema import Experiment

MINIMAL = """
name: trial
base: {model: tiny-random}
data:
  sft: {path: sft.jsonl}
  rm: {path: rm.jsonl}
  ppo: {path: ppo.jsonl}
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes, name: str = "trial.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else textwrap.dedent(text).encode())
        return path

    return write


@pytest.fixture
def minimal(write) -> Path:
    return write(MINIMAL)


def complaints(file: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_experiment(file, overrides)
    return str(caught.value).splitlines()


# Precedence


def test_the_file_overrides_defaults_and_the_command_line_overrides_the_file(write):
    file = write(MINIMAL + "ppo: {kl_coef: 0.1, gamma: 0.9}\n")
    experiment = load_experiment(file, ["ppo.kl_coef=0.2"])
    assert (experiment.ppo.kl_coef, experiment.ppo.gamma, experiment.ppo.lam) == (0.2, 0.9, 0.95)


def test_the_last_of_two_overrides_wins(minimal):
    assert load_experiment(minimal, ["seed=1", "seed=2"]).seed == 2


def test_exponents_that_yaml_reads_as_text_become_numbers(write):
    file = write(MINIMAL + "sft: {learning_rate: 1e-4}\n")
    experiment = load_experiment(file, ["rm.learning_rate=2e-4"])
    assert (experiment.sft.learning_rate, experiment.rm.learning_rate) == (0.0001, 0.0002)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("adapter.target_modules=[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ("adapter.target_modules=all-linear", "all-linear"),
        ("data.sft.limit=null", None),
        ("data.sft.limit=", None),
        ("data.chat=true", True),
        ("tracking.group=a=b", "a=b"),
        ("tracking.group='123'", "123"),
    ],
)
def test_an_override_is_read_as_yaml(minimal, override, value):
    found = load_experiment(minimal, [override])
    for key in override.partition("=")[0].split("."):
        found = getattr(found, key)
    assert found == value


def test_an_override_of_a_section_replaces_it(write):
    file = write(MINIMAL + "ppo: {rollout: {max_new_tokens: 7, batch_size: 8}}\n")
    assert load_experiment(file, ["ppo.rollout={batch_size: 9}"]).ppo.rollout.max_new_tokens == 128


def test_an_empty_section_is_all_defaults(write):
    assert load_experiment(write(MINIMAL + "ppo:\ntracking:\n")).ppo.iterations == 100


def test_an_override_changes_one_of_two_sections_that_share_an_anchor(write):
    file = write(MINIMAL + "sft: &s {batch_size: 8}\nrm: *s\n")
    experiment = load_experiment(file, ["sft.batch_size=4"])
    assert (experiment.sft.batch_size, experiment.rm.batch_size) == (4, 8)


# Paths


def test_paths_in_the_file_are_relative_to_it_and_on_the_command_line_to_the_working_directory(
    write, tmp_path, monkeypatch
):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    file = write(MINIMAL + "deepspeed: {config: ../z.json}\n")
    relative = Path("..") / file.name
    experiment = load_experiment(relative, ["data.ppo.path=mine.jsonl", "data.chat_template=t.jinja"])
    assert experiment.data.sft.path == str(tmp_path / "sft.jsonl")
    assert experiment.deepspeed.config == str(tmp_path.parent / "z.json")
    assert experiment.data.ppo.path == str(work / "mine.jsonl")
    assert experiment.data.chat_template == str(work / "t.jinja")


@pytest.mark.parametrize("name", ["Anthropic/hh-rlhf", "imdb"])
def test_other_data_paths_are_hub_datasets(minimal, name):
    assert load_experiment(minimal, [f"data.rm.path={name}"]).data.rm.path == name


@pytest.mark.parametrize("name", ["tiny-random", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_model_names_stay(minimal, name):
    assert load_experiment(minimal, [f"base.model={name}"]).base.model == name


@pytest.mark.parametrize(("given", "where"), [("./m", "{cwd}/m"), ("~/m", "{home}/m"), ("/x/../m", "/m")])
def test_a_local_model_is_absolute(minimal, tmp_path, monkeypatch, given, where):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.chdir(tmp_path)
    model = load_experiment(minimal, [f"base.model={given}"]).base.model
    assert model == where.format(cwd=tmp_path, home="/home/somebody")


def test_the_default_engine_is_the_one_shipped_wherever_the_experiment_is(minimal):
    for overrides in ([], ["deepspeed={timeout_minutes: 5}"]):
        config = Path(load_experiment(minimal, overrides).deepspeed.config)
        assert config.is_file() and config.parts[-3:] == ("configs", "deepspeed", "zero0.json")


# Mistakes


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
    lines = complaints(file, "ppo.kl_coeff=0.1", "ppo.gamma=3")
    expected = [
        f"{file}:3: base.quantization: 'nf5' is not allowed; allowed: one of nf4, int8, none; "
        "did you mean nf4?",
        f"{file}:5: data.sft.held_outt: unknown key; allowed in data.sft: path, name, split, revision, "
        "limit, held_out; did you mean data.sft.held_out?",
        f"{file}: data.rm.path: missing; allowed: text",
        f"{file}:9: sft.batch_size: 'lots' is not allowed; allowed: an integer ≥ 1 "
        "(global: sequences (sft), prompts (rm, ppo) per step)",
        "command line (ppo.gamma=3): ppo.gamma: 3 is not allowed; allowed: a number ≥ 0 and ≤ 1",
    ]
    (unknown,) = [line for line in lines if line not in expected]
    assert sorted(lines) == sorted([*expected, unknown])
    assert unknown.startswith(
        "command line (ppo.kl_coeff=0.1): ppo.kl_coeff: unknown key; allowed in ppo: lear"
    )
    assert unknown.endswith("; did you mean ppo.kl_coef?")


def test_a_key_in_the_wrong_section_is_told_where_it_belongs(minimal):
    (line,) = complaints(minimal, "kl_coef=0.1")
    assert line.endswith("; did you mean ppo.kl_coef?")


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("seed", "no value; write seed=VALUE"),
        ("", "unknown key; allowed here: name, seed,"),
        ("=3", "unknown key"),
        ("seed.x=1", "seed.x: unknown key; seed holds an integer ≥ 0, not keys"),
        ("pppo.gamma=1", "did you mean ppo?"),
        ("sft.epochs={", "sft.epochs: not YAML, line 1 column 2"),
        ("name=", "name: null is not allowed; allowed: text matching"),
        ("name=2024", "put quotes around it"),
        ("sft=3", "sft: 3 is not allowed; allowed: a section with the keys learning_rate"),
        ("adapter.target_modules=3", "3 is not allowed; allowed: all-linear or a list of text"),
        ("tracking.tags=[a, 1]", "tracking.tags[1]: 1 is not allowed"),
        ("tracking={wandb: ofline}", "did you mean offline?"),
        ("ppo.kl_coef=.nan", "nan is not allowed"),
    ],
)
def test_a_wrong_override_is_one_complaint_that_names_it(minimal, override, reason):
    (line,) = complaints(minimal, override)
    assert line.startswith(f"command line ({override}): ") and reason in line


def test_keys_that_contradict_each_other_name_the_override_that_made_them_do_so(write):
    file = write(MINIMAL + "ppo: {batch_size: 8}\n")
    (line,) = complaints(file, "ppo.minibatches=3")
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
        ("a: 2024-99-99\n", ": not YAML: month must be in 1..12"),
        ("a: !!python/name:os.system\n", ": not YAML, line 1 column 4"),
        (b"name: \xff\n", ": not UTF-8: byte 6 is 0xff"),
        ("name: \x00\n", ": not YAML: unacceptable character #x0000"),
    ],
)
def test_a_broken_file_is_one_complaint_beside_those_of_the_command_line(write, text, reason):
    file = write(text)
    first, *rest = complaints(file, "ppo.gamma=3", "nonsense=1")
    assert first.startswith(f"{file}{reason}")
    assert [line[:12] for line in rest] == ["command line"] * 2


def test_a_file_that_is_not_there_is_named(tmp_path):
    (line,) = complaints(tmp_path / "nowhere.yaml")
    assert line.startswith(f"{tmp_path}/nowhere.yaml: cannot be read: No such file or directory")
    (line,) = complaints(tmp_path)
    assert "Is a directory" in line


def test_a_key_given_twice_is_reported_with_both_lines(write):
    file = write(MINIMAL + "sft:\n  epochs: 1\n  batch_size: 4\n  epochs: 2\nsft: {}\n")
    assert complaints(file) == [
        f"{file}:11: sft.epochs: given twice, first on line 9",
        f"{file}:12: sft: given twice, first on line 8",
    ]


def test_keys_that_are_not_text_are_unknown_keys(write):
    assert all("unknown key" in line for line in complaints(write(MINIMAL + "1: 2\non: 3\n~: 4\n")))


def test_an_endless_yaml_ends(write):
    assert complaints(write("a: &a {b: *a}\nbase: &b {model: *b}\n"))


@given(text=st.text(alphabet="ab:{}[]&*!|>-#'\"\n \t%@`,?1.~", max_size=40))
def test_whatever_the_file_holds_the_answer_is_for_the_user(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(text)
    with pytest.raises(UserError):
        load_experiment(file, [text])


# What is written down


def test_a_dump_loads_back_equal(write, minimal):
    experiment = load_experiment(minimal, ["name='1e3'", "base.revision='1234567'", "sft.learning_rate=1e-5"])
    assert load_experiment(write(dump_experiment(experiment), "dumped.yaml")) == experiment


def trial(minimal: Path, *overrides: str) -> Experiment:
    return load_experiment(minimal, overrides)


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("seed=7", {"sft", "rm", "ppo"}),
        ("base.quantization=int8", {"sft", "rm", "ppo"}),
        ("adapter.r=4", {"sft", "rm", "ppo"}),
        ("data.max_length=2048", {"sft", "rm", "ppo"}),
        ("data.rm.limit=10", {"rm"}),
        ("sft.epochs=2", {"sft"}),
        ("ppo.kl_coef=0.3", {"ppo"}),
        ("rm.rankings.completions=3", {"rm"}),
        ("ppo.rollout.max_new_tokens=3", {"ppo"}),
        ("ppo.rollout.batch_size=3", set()),
        ("ppo.rollout.engine=hf", set()),
        ("ppo.old_logprobs=recomputed", set()),
        ("rm.rankings.rollout.engine=merged", set()),
        ("ppo.rollout.engine=vllm", {"ppo"}),
        ("ppo.rollout.vllm.gpu_memory_utilization=0.5", set()),
        ("ppo.rollout.engine=continuous", set()),
        ("base.gradient_checkpointing=true", set()),
        ("sft.micro_batch_size=1", set()),
        ("ppo.save_steps=1", set()),
        ("name=other", set()),
        ("tracking.wandb=disabled", set()),
        ("deepspeed.config=/z.json", set()),
    ],
)
def test_a_stage_hash_changes_with_what_influences_that_stage_alone(minimal, override, stages):
    before, after = trial(minimal), trial(minimal, override)
    key = override.partition("=")[0]
    for stage in ("sft", "rm", "ppo"):
        assert (stage_hash(before, stage) != stage_hash(after, stage)) == (stage in stages)
        assert changed_keys(before, after, stage) == ([key] if stage in stages else [])


def test_a_base_of_the_reward_models_own_counts_from_the_reward_model_on(minimal):
    plain, own = trial(minimal), trial(minimal, "rm.base.model=other")
    int8 = trial(minimal, "rm.base={model: other, quantization: int8}")
    for stage in ("sft", "rm", "ppo", "best"):
        later = stage != "sft"
        assert ("rm.base.model" in changed_keys(plain, own, stage)) == later
        assert changed_keys(own, int8, stage) == (["rm.base.quantization"] if later else [])
        assert own.bases(stage) == ([own.base, own.rm.base] if later else [own.base])
        assert own.base_of(stage) == (own.rm.base if stage == "rm" else own.base)
        assert plain.bases(stage) == [plain.base_of(stage)] == [plain.base]
    slower = trial(minimal, "rm.base={model: other, gradient_checkpointing: true}")
    assert stage_hash(own, "rm") == stage_hash(slower, "rm")


def test_the_reward_models_base_may_be_left_out_or_be_a_relative_path(minimal, tmp_path):
    assert trial(minimal, "rm.base=null").rm.base is None
    minimal.write_text(minimal.read_text() + "rm: {base: {model: ./small}}\n")
    assert trial(minimal).base_of("rm").model == str(tmp_path / "small")


def test_a_stage_that_shares_its_source_changes_when_another_leaves_it(minimal):
    shared = [f"data.{stage}.path=hub/set" for stage in ("sft", "rm", "ppo")]
    before = trial(minimal, *shared)
    assert stage_hash(before, "ppo") == stage_hash(trial(minimal, *shared, "data.rm.limit=5"), "ppo")
    assert stage_hash(before, "ppo") != stage_hash(trial(minimal, *shared[1:]), "ppo")
