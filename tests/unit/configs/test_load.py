"""Reading an experiment: precedence, paths, and the dump that loads back equal."""

from pathlib import Path

import pytest

from configs.errors import UserError
from configs.load import dump_experiment, load_experiment
from configs.schema import labeller_kind
from tests.unit.configs.minimal import MINIMAL

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
        ("seed=1_000", 1000),
        ("seed=0x10", 16),
        ("base.revision=0012", "0012"),
        ("base.revision=1:30", "1:30"),
        ("base.revision=2024-01-01", "2024-01-01"),
        ("base.revision=12e4567", "12e4567"),
        ("sft.packing=on", True),
    ],
)
def test_an_override_is_read_as_yaml(minimal, override, value):
    section = load_experiment(minimal, [override])
    for key in override.partition("=")[0].split("."):
        section = getattr(section, key)
    assert section == value


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
    assert experiment.data.sources("sft")[0].path == str(tmp_path / "sft.jsonl")
    assert experiment.deepspeed.config == str(tmp_path.parent / "z.json")
    assert experiment.data.sources("ppo")[0].path == str(work / "mine.jsonl")
    assert experiment.data.chat_template == str(work / "t.jinja")


def test_what_lies_beside_the_file_is_a_path_and_no_name_of_the_hub(write, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for folder in ("prompts", "org/model"):
        (tmp_path / folder).mkdir(parents=True)
    text = MINIMAL.replace("tiny-random", "org/model").replace("ppo.jsonl", "prompts")
    experiment = load_experiment(write(text))
    assert experiment.data.sources("ppo")[0].path == f"{tmp_path}/prompts"
    assert experiment.base.model == f"{tmp_path}/org/model"
    assert load_experiment(write(text), ["data.ppo.path=imdb"]).data.sources("ppo")[0].path == "imdb"


@pytest.mark.parametrize("key", ["data.ppo.path", "base.model"])
def test_a_folder_of_the_working_directory_is_not_taken_for_one_beside_the_file(
    write, tmp_path, monkeypatch, key
):
    (tmp_path / "work" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    replaced = "tiny-random" if key == "base.model" else "ppo.jsonl"
    file = write(MINIMAL.replace(replaced, "mine"))
    with pytest.raises(UserError, match=rf"{key}: mine is a folder of the working directory, and not of"):
        load_experiment(file)
    assert load_experiment(file, [f"{key}=mine"])


@pytest.mark.parametrize("name", ["Anthropic/hh-rlhf", "imdb"])
def test_other_data_paths_are_hub_datasets(minimal, name):
    assert load_experiment(minimal, [f"data.rm.path={name}"]).data.sources("rm")[0].path == name


@pytest.mark.parametrize("name", ["tiny-random", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_model_names_stay(minimal, name):
    assert load_experiment(minimal, [f"base.model={name}"]).base.model == name


@pytest.mark.parametrize(("path", "expected"), [("./m", "{cwd}/m"), ("~/m", "{home}/m"), ("/x/../m", "/m")])
def test_a_local_model_is_absolute(minimal, tmp_path, monkeypatch, path, expected):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.chdir(tmp_path)
    model = load_experiment(minimal, [f"base.model={path}"]).base.model
    assert model == expected.format(cwd=tmp_path, home="/home/somebody")


def test_the_default_engine_is_the_one_shipped_wherever_the_experiment_is(minimal):
    for overrides in ([], ["deepspeed={timeout_minutes: 5}"]):
        config = Path(load_experiment(minimal, overrides).deepspeed.config)
        assert config.is_file() and config.parts[-3:] == ("configs", "deepspeed", "zero0.json")


# The dump


def test_a_dump_loads_back_equal(write, minimal):
    experiment = load_experiment(minimal, ["name='1e3'", "base.revision='1234567'", "sft.learning_rate=1e-5"])
    assert load_experiment(write(dump_experiment(experiment), "dumped.yaml")) == experiment


# Labellers


def test_the_file_of_a_judge_is_a_path(write, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    key = "rm.rankings.labeller"
    file = write(MINIMAL + "rm: {rankings: {labeller: ../judges/one.yaml}}\n")
    assert load_experiment(file).rm.rankings.labeller == f"{tmp_path.parent}/judges/one.yaml"
    of_command_line = load_experiment(file, [f"{key}=judge.yml"])
    assert of_command_line.rm.rankings.labeller == f"{tmp_path}/work/judge.yml"
    file = write(MINIMAL + "rm: {rankings: {labeller: {agree: [a.yaml, warmth]}}}\n")
    assert load_experiment(file).rm.rankings.labellers == {
        f"{key}.agree[0]": f"{tmp_path}/a.yaml",
        f"{key}.agree[1]": "warmth",
    }
    both = load_experiment(file, [f"{key}={{agree: ['mine:yaml', ~/b.yaml]}}"])
    assert list(both.rm.rankings.labellers.values()) == ["mine:yaml", str(Path.home() / "b.yaml")]
    write(dump_experiment(both), "dump.yaml")
    assert load_experiment(tmp_path / "dump.yaml") == both


def test_labellers_are_named_without_folders(minimal):
    named = {
        "file": "file",
        "people": "people",
        "warmth": "warmth",
        "a/judge.yaml": "judge.yaml",
        "{agree: [warmth, a/judge.yaml]}": "warmth and judge.yaml, where they agree",
    }
    for labeller, name in named.items():
        rankings = load_experiment(minimal, [f"rm.rankings.labeller={labeller}"]).rm.rankings
        assert rankings.labelled_by == name
        assert len(rankings.labellers) == {"file": 0}.get(labeller, 1 + ("agree" in labeller))


def test_what_the_stages_call(minimal):
    given = ["rm.rankings.labeller={agree: ['mine:score', j.yaml]}", "ppo.judge=warmth"]
    config = load_experiment(minimal, given)
    first, second = (f"rm.rankings.labeller.agree[{place}]" for place in (0, 1))
    judge = str(Path.cwd() / "j.yaml")
    assert config.users_code(["rm"]) == [(first, "mine:score"), (second, judge)]
    assert config.users_code(["ppo"]) == []
    assert config.judge_files(["rm", "ppo"]) == {second: judge}


@pytest.mark.parametrize("path", ["rows/*.jsonl", "rows/*", "rows/a.CSV", "a.tsv.zst", "rows/[ab].json.gz"])
def test_files_and_patterns_are_local_paths(minimal, path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert load_experiment(minimal, [f"data.sft.path='{path}'"]).data.sources("sft")[0].path == str(
        tmp_path / path
    )


def test_columns_are_keys_of_their_own(minimal):
    columns = load_experiment(minimal, ["data.sft.columns.prompt=Best Answer"]).data.sources("sft")[0].columns
    assert columns.names == {"Best Answer": "prompt"}
    with pytest.raises(UserError, match=r"unknown key; did you mean data\.sft\.columns\.prompt\?"):
        load_experiment(minimal, ["data.sft.columns.promt=q"])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("file", "file"),
        ("people", "people"),
        ("warmth", "shipped"),
        ("mine:score", "function"),
        ("/a/judge.yaml", "endpoint"),
        ("judge.yml", "endpoint"),
    ],
)
def test_the_name_of_a_labeller_tells_what_it_is(name, kind):
    assert labeller_kind(name) == kind
