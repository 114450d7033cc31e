"""Labelled tasks in YAML: what is read, taken over from a pool that ships, and refused by file and key."""

from pathlib import Path

import pytest
import yaml

from configs.errors import UserError
from configs.identity import stage_hash
from configs.load import dump_experiment, load_experiment
from configs.task_file import read_task, read_tasks, shipped_pools, task_digest
from configs.task_pool import label_name
from pipeline.state.manifest import source_hashes
from tests.contract.bad_inputs.entry import check_message

GOOD = {"name": "ask", "prompt": "{{ text }}?"}
TASK = {"options": ["good", "bad"], "templates": [GOOD]}
LEAK = "its prompt shows the answer"


def write(folder: Path, **tasks: object) -> Path:
    file = folder / "tasks.yaml"
    file.write_text(yaml.safe_dump({"tasks": tasks}, allow_unicode=True))
    return file


@pytest.mark.parametrize(
    ("label", "name"),
    [(1, "1"), ("1", "1"), (1.0, "1"), (True, "true"), (-1, "-1"), (0.5, "0.5"), ([], None)],
)
def test_a_label_has_one_name_however_a_file_writes_it(label, name):
    assert label_name(label) == name


def test_a_task_is_found_by_file_and_name(tmp_path):
    file = write(tmp_path, a=TASK, b=TASK)
    assert read_task(f"{file}:b", "k").name == "b"
    assert [task.name for task in read_tasks(str(file), "k")] == ["a", "b"]
    one = tmp_path / "one.yml"
    one.write_text(yaml.safe_dump({"tasks": {"only": TASK}}))
    assert read_task(str(one), "k").name == "only"


def test_a_task_takes_over_a_pool_that_ships_but_for_what_it_says_itself(tmp_path):
    file = write(tmp_path, mine={"extends": "nli", "few_shot": {"k": 3}, "options": ["true", "false"]})
    task, pool = read_task(str(file), "k"), read_task("nli", "k")
    assert task.templates == pool.templates and task.ignore_labels == pool.ignore_labels == ("-1", "-")
    assert task.choices == ("true", "false") and pool.choices == ("yes", "maybe", "no")
    assert task.few_shot.k == 3 and task.example is None


def test_chinese_pools_have_chinese_cues(tmp_path):
    for name in shipped_pools():
        file = write(tmp_path, mine={"extends": name, "chain_of_thought": {}})
        thought = read_task(str(file), "k").chain_of_thought
        assert thought is not None and thought.cue.isascii() != name.endswith("_zh")
        assert thought.conclusion.isascii() != name.endswith("_zh")


def test_labels_of_a_mapping_may_be_numbers(tmp_path):
    file = write(tmp_path, mine={**TASK, "options": {0: "no", 1: "yes"}, "ignore_labels": [-1]})
    task = read_task(str(file), "k")
    assert task.options == {"0": "no", "1": "yes"} and task.ignore_labels == ("-1",)


FAULTS = [
    ({"templates": [GOOD]} | {"option": ["a", "b"]}, "tasks.t: option: ", "the keys are name, extends"),
    ({"options": ["a", "b"]}, "templates: none asks for the answer"),
    ({"templates": [{**GOOD, "inverted": True, "completion": "{{ text }}"}]}, "none asks for the answer"),
    ({"templates": [{"name": "ask"}]}, "templates[0].prompt: Field required"),
    ({"templates": [GOOD, {**GOOD, "prompt": "{{ text }}!"}]}, "two have the name 'ask'"),
    ({"templates": [GOOD, {**GOOD, "name": "b", "prompt": "{{ text }}?\n"}]}, "two have the wording"),
    ({"templates": [{**GOOD, "prompt": "{% if text %}"}]}, "prompt: line 1: not Jinja: Unexpected end"),
    ({"templates": [{**GOOD, "prompt": "{{ text"}]}, "prompt: line 1: not Jinja"),
    ({"templates": [{**GOOD, "prompt": "a\n{{ text } }}"}]}, "prompt: line 2: not Jinja"),
    ({"templates": [{**GOOD, "prompt": "{{ text | nofilter }}"}]}, "No filter named 'nofilter'; correct it"),
    ({"templates": [{**GOOD, "prompt": "{{ text }}{{ [1] | random }}"}]}, "No filter named 'random'"),
    ({"templates": [{**GOOD, "prompt": "{{ 9 ** 9 ** 9 ** 9 }}"}]}, "shows nothing of the row"),
    ({"templates": [{**GOOD, "prompt": "{{ 'x' | center(9 ** 99) }}"}]}, "shows nothing of the row"),
    ({"templates": [{**GOOD, "prompt": " "}]}, "a template is empty"),
    ({"templates": [{**GOOD, "prompt": "{{ " + "(" * 5000 + " }}"}]}, "nested too deeply"),
    ({"templates": [{**GOOD, "prompt": "x" * 30_000}]}, "at most 20000"),
    ({"templates": [{**GOOD, "prompt": "Say something."}]}, "shows nothing of the row"),
    ({"templates": [{**GOOD, "prompt": "{{ options }}"}], "options": ["a", "b"]}, "shows nothing of the row"),
    ({"templates": [{**GOOD, "prompt": "{{ text }} {{ answer }}"}]}, f"templates[0] (ask): {LEAK} (answer)"),
    ({"templates": [{**GOOD, "prompt": "{{ text }} {{ label }}"}]}, f"{LEAK} (label)"),
    ({"label": "gold", "templates": [{**GOOD, "prompt": "{{ text }}{{ gold }}"}]}, f"{LEAK} (gold)"),
    (
        {"chain_of_thought": {"column": "why"}, "templates": [{**GOOD, "prompt": "{{ text }}{{ why }}"}]},
        f"{LEAK} (why)",
    ),
    ({"templates": [{**GOOD, "completion": "yes"}]}, "its completion has no answer"),
    (
        {"templates": [GOOD, {"name": "i", "prompt": "{{ answer }}", "inverted": True}]},
        "templates[1] (i): inverted, but its completion has no column of the input",
    ),
    ({**TASK, "options": [True, False]}, "options: True is no text; put quotes around it, as in 'yes'"),
    ({**TASK, "options": ["1", "2", "3"]}, "is the label 1 the option '1', or '2', as labels count from 0"),
    ({**TASK, "options": ["a", " "]}, "an option is empty"),
    ({**TASK, "options": ["a"]}, "options: 1 different texts; name from 2 to 100"),
    ({**TASK, "options": 3}, "options: 3 is no list of texts"),
    ({**TASK, "options": {None: "a", 1: "b"}}, "None can be no label"),
    ({**TASK, "options": ["a", "a"]}, "options: 1 different texts"),
    ({**TASK, "options": {0: "a", 1: "a"}}, "options: 1 different texts"),
    ({**TASK, "few_shot": {"k": -1}}, "few_shot.k: "),
    ({**TASK, "few_shot": {"separator": "x"}}, "few_shot.k: Field required"),
    ({**TASK, "held_out": 0.5}, "held_out: Input should be 'all'"),
    ({**TASK, "name": "x"}, "name: unknown key"),
    ({"extends": "nlI"}, "extends: 'nlI' is no pool that ships; these do: brainstorming"),
    ({**TASK, "source": {"limit": 3}}, "source.path: Field required"),
]


@pytest.mark.parametrize(("task", "parts"), [(task, parts) for task, *parts in FAULTS], ids=str)
def test_a_task_is_refused_by_file_and_key(tmp_path, task, parts):
    file = write(tmp_path, t=task)
    with pytest.raises(UserError) as refusal:
        read_task(str(file), "data.sft.task")
    check_message(str(refusal.value), f"data.sft.task: {file}: tasks.t: ", *parts)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "cannot be read: No such file"),
        ("", "it holds no tasks"),
        ("tasks: []", "it holds no tasks"),
        ("tasks: {a: [b]}", "it holds no tasks"),
        ("tasks: {a: {b: [}", "not YAML"),
        ("tasks: {a: {}, a: {}}", "tasks.a is given twice, line 1"),
        ("tasks: {a: {}}\ntemplates: []", "'templates' is no key of it; its only key is tasks"),
        ("tasks: {a: {}, b: {}}", "has the tasks a, b. Name one, as in tasks.yaml:NAME"),
        (b"\xff\xfe", "not UTF-8: byte 0 is 0xff; save it as UTF-8"),
        ("a: &a [*a]", "an anchor holds itself"),
    ],
)
def test_a_file_is_refused(tmp_path, content, part):
    file = tmp_path / "tasks.yaml"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as refusal:
        read_task(str(file), "data.sft.task")
    check_message(str(refusal.value), f"data.sft.task: {file}", part)


@pytest.mark.parametrize(
    ("reference", "part"), [("nlii", "'nlii' is no pool that ships"), ("", "is no pool")]
)
def test_an_unknown_pool_is_refused_with_those_that_ship(reference, part):
    with pytest.raises(UserError) as refusal:
        read_task(reference, "data.sft.task")
    check_message(str(refusal.value), part, ", ".join(shipped_pools()))


def experiment(folder: Path, source: str) -> Path:
    file = folder / "a.yaml"
    file.write_text(
        f"name: a\nbase: {{model: tiny-random}}\ndata:\n  sft: {source}\n  rm: {{path: b.jsonl}}\n"
        "  ppo: {path: c.jsonl}\n"
    )
    return file


def test_a_source_takes_its_rows_from_the_task_unless_it_says_where_they_are(tmp_path):
    (tmp_path / "pools").mkdir()
    file = write(tmp_path / "pools", t={**TASK, "source": {"path": "rows.jsonl", "limit": 5}})
    config = load_experiment(experiment(tmp_path, "{task: pools/tasks.yaml, limit: 7}"))
    assert config.data.sources("sft")[0].path == str(tmp_path / "pools" / "rows.jsonl")
    assert config.data.sources("sft")[0].task == str(file) and config.data.sources("sft")[0].limit == 7
    assert load_experiment(experiment(tmp_path, "{task: pools/tasks.yaml}")).data.sources("sft")[0].limit == 5
    given = load_experiment(experiment(tmp_path, "{task: pools/tasks.yaml:t, path: own.jsonl}"))
    assert (
        given.data.sources("sft")[0].path == str(tmp_path / "own.jsonl")
        and given.data.sources("sft")[0].limit is None
    )
    (tmp_path / "dump.yaml").write_text(dump_experiment(config))
    assert load_experiment(tmp_path / "dump.yaml") == config


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("{task: nli}", ("data.sft.task: the task nli does not say where its rows are", "Give a `path`")),
        ("{task: none.yaml}", ("data.sft.task: ", "none.yaml: cannot be read")),
        ("{task: nli, path: a.jsonl, format: text}", ("format is of formats",)),
        ("{task: nli, path: a.jsonl, columns: {prompt: q}}", ("columns is of formats", "`source.columns`")),
    ],
)
def test_a_source_with_a_wrong_task_is_refused(tmp_path, source, parts):
    with pytest.raises(UserError) as refusal:
        load_experiment(experiment(tmp_path, source))
    check_message(str(refusal.value), *parts)
    assert str(refusal.value).count("\n") == 0  # one error, not two about one cause


def test_the_manifest_tells_what_a_task_makes_of_its_rows(tmp_path):
    """The stage trains again if a template changes, and not if another task of the file does."""
    (tmp_path / "a.jsonl").write_text("{}\n")
    file = write(tmp_path, a=TASK, b=TASK)
    config = load_experiment(experiment(tmp_path, f"{{task: '{file}:a', path: a.jsonl}}"))
    before = source_hashes(config, "sft")
    assert before["data.sft.task"] == task_digest(f"{file}:a")
    write(tmp_path, a=TASK, b={**TASK, "few_shot": {"k": 1}})
    assert source_hashes(config, "sft") == before
    write(tmp_path, a={**TASK, "few_shot": {"k": 1}}, b=TASK)
    assert source_hashes(config, "sft") != before


def test_a_source_without_a_task_keeps_its_hash(tmp_path):
    with_task = load_experiment(experiment(tmp_path, "{task: nli, path: a.jsonl}"))
    without = load_experiment(experiment(tmp_path, "{path: a.jsonl}"))
    assert stage_hash(with_task, "sft") != stage_hash(without, "sft")
    assert stage_hash(with_task, "rm") == stage_hash(without, "rm")
