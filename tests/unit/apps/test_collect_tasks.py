"""What people are asked: from a file, an evaluation, or the prompts of a stage; and rounds that go on."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from apps.collect.prepare import open_round
from apps.collect.tasks import Asked
from apps.trained_run import TrainedRun
from configs.errors import UserError
from configs.load import load_experiment
from configs.schema import STAGES, Experiment
from data.people.adapters import write_adapters
from data.people.round import Kind, Round
from data.sources.messages import recorded
from data.storage.files import write_json_lines
from pipeline.state.run_directory import RunDirectory
from tests.support.pipeline_runs import write_stage
from tests.support.runs import TINY

ROWS = [{"prompt": f"p{i}", "completions": [f"a{i}", f"b{i}", f"c{i}"], "ranks": [1, 2, 3]} for i in range(5)]
EVALUATED = [{"prompt": f"p{i}", "sft": f"s{i}", "ppo": f"s{i}" if i == 0 else f"t{i}"} for i in range(5)]


@pytest.fixture
def config() -> Experiment:
    return load_experiment(TINY)


def opened(folder: Path, asked: Asked, config: Experiment) -> Round:
    return open_round(folder / "round", asked, config, RunDirectory(folder), print)


def test_answers_of_a_file(tmp_path, config):
    file = tmp_path / "answers.jsonl"
    write_json_lines(file, ROWS)
    content = opened(tmp_path, Asked("ratings", answers=pairs_of(tmp_path), number=4), config)
    assert [task.completions for task in content.tasks.values()] == [(f"a{i}",) for i in range(4)]
    assert not content.settings.continues_text  # the tiny experiment chats
    with pytest.raises(UserError, match="a pair has two answers, and this row 3"):
        opened(tmp_path / "pairs", Asked("pairs", answers=file), config)


def pairs_of(folder: Path) -> Path:
    """Prompts with one answer."""
    file = folder / "single.jsonl"
    write_json_lines(file, [{"prompt": row["prompt"], "completion": row["completions"][0]} for row in ROWS])
    return file


def test_a_weight_asks_nobody_twice(tmp_path, config):
    source = config.data.sources("sft")[0].model_copy(update={"weight": 2.0})
    twice = config.model_copy(update={"data": config.data.model_copy(update={"sft": source})})
    once = opened(tmp_path, Asked("demonstrations", number=6), config)
    assert opened(tmp_path / "twice", Asked("demonstrations", number=6), twice).tasks == once.tasks
    assert len(once.tasks) == 6


def test_rankings_of_a_file_are_split_by_prompt(tmp_path, config):
    """As those that a policy answers are: else the reward model would have no held-out accuracy."""
    file = tmp_path / "answers.jsonl"
    rows = [
        ROWS[0] | {"prompt": f"p{i}", "completions": [f"a{i}", f"b{i}"], "ranks": [1, 2]} for i in range(40)
    ]
    write_json_lines(file, rows)
    asked = Asked("rankings", answers=file, number=20)
    splits = {task.prompt: task.split for task in opened(tmp_path, asked, config).tasks.values()}
    assert Counter(splits.values()) == {"train": 16, "held_out": 4}  # 8 of 40
    again = opened(tmp_path / "all", Asked("rankings", answers=file), config).tasks.values()
    assert splits.items() <= {task.prompt: task.split for task in again}.items()


def test_an_evaluation_holds_out_what_ppo_did_beside_what_people_ranked(tmp_path, config):
    """A prompt from which the reward model learned is no test of PPO, wherever people found it."""
    rankings = config.rm.rankings.model_copy(update={"labeller": "people"})
    config = config.model_copy(update={"rm": config.rm.model_copy(update={"rankings": rankings})})
    run = TrainedRun(RunDirectory(tmp_path), config, {})
    learned = run.rows("ppo", "prompts").held_out[0]
    (tmp_path / "rm").mkdir()
    row = {"prompt": learned["prompt"], "completions": ["a", "b"], "ranks": [0, 1], "split": "train"}
    write_json_lines(tmp_path / "rm/rankings.jsonl", [row])
    rows = run.rows("ppo", "prompts")
    assert learned["prompt"] not in [row["prompt"] for row in rows.held_out]
    assert learned["prompt"] in [row["prompt"] for row in rows.train] and len(rows.held_out) == 8


def test_more_answers_than_digits_are_refused(tmp_path, config):
    """Nobody could submit them: a digit gives an answer its rank."""
    file = tmp_path / "answers.jsonl"
    many = [{"prompt": f"p{i}", "completions": [f"{i}{n}" for n in range(10)]} for i in range(40)]
    write_json_lines(file, [row | {"ranks": list(range(1, 11))} for row in many])
    with pytest.raises(
        UserError, match=r"line \d+: 10 answers are more than 9: a person gives each its rank"
    ):
        opened(tmp_path, Asked("rankings", answers=file), config)
    rankings = config.rm.rankings.model_copy(update={"completions": 10})
    more = config.model_copy(update={"rm": config.rm.model_copy(update={"rankings": rankings})})
    with pytest.raises(UserError, match=r"rm.rankings.completions: 10 answers are more than 9: .*-k 9"):
        opened(tmp_path, Asked("rankings"), more)


def test_what_no_stage_could_read_is_left_out_before_people_work_on_it(tmp_path, config, capsys):
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    write_json_lines(prompts, [{"prompt": "short"}, {"prompt": "long " * 200}])
    content = opened(tmp_path, Asked("demonstrations", prompts=prompts), config)
    assert [task.prompt for task in content.tasks.values()] == ["short"]
    assert "1 of 2 prompts left out: with their answers, they are longer than" in capsys.readouterr().out
    write_json_lines(answers, [{"prompt": "p", "completion": text} for text in ("short", "long " * 400)])
    content = opened(tmp_path / "ratings", Asked("ratings", answers=answers), config)
    assert [task.completions for task in content.tasks.values()] == [("short",)]


def test_prompts_that_changed_are_told(tmp_path, config):
    """The name of a file says nothing of what is in it."""
    file = tmp_path / "prompts.jsonl"
    write_json_lines(file, [{"prompt": "before"}])
    asked = Asked("demonstrations", prompts=file)
    before = opened(tmp_path, asked, config)
    assert opened(tmp_path, Asked("demonstrations"), config).tasks == before.tasks
    write_json_lines(file, [{"prompt": "after"}])
    for again in (asked, Asked("demonstrations")):
        with pytest.raises(UserError, match=r"prompts.jsonl changed since the round there began"):
            opened(tmp_path, again, config)
    file.unlink()  # as on another machine
    assert opened(tmp_path, asked, config).tasks == before.tasks


def test_two_policies_in_any_order_are_those_of_the_evaluation(tmp_path, config):
    (tmp_path / "ppo").mkdir()
    write_json_lines(tmp_path / "ppo/evaluation.jsonl", EVALUATED)
    content = opened(tmp_path, Asked("pairs", ("ppo", "sft")), config)
    task = next(iter(content.tasks.values()))
    assert (task.completions, task.sources) == (("t1", "s1"), ("ppo", "sft"))


def test_pairs_of_an_evaluation_are_its_answers(tmp_path, config):
    (tmp_path / "ppo").mkdir()
    write_json_lines(tmp_path / "ppo/evaluation.jsonl", EVALUATED)
    content = opened(tmp_path, Asked("pairs"), config)
    tasks = list(content.tasks.values())
    assert [task.completions for task in tasks] == [(f"s{i}", f"t{i}") for i in range(1, 5)]
    assert {task.sources for task in tasks} == {("sft", "ppo")}
    assert content.settings.equal == 1  # a tie, about which nobody is asked


def test_pairs_show_the_conversation_that_was_answered(tmp_path, config):
    talks = [
        [
            {"role": role, "content": content}
            for role, content in (("user", f"{topic}?"), ("assistant", "No."), ("user", "Why?"))
        ]
        for topic in ("Tea", "Jam")
    ]
    rows = [recorded(talk) | {"sft": f"s{number}", "ppo": f"t{number}"} for number, talk in enumerate(talks)]
    (tmp_path / "ppo").mkdir()
    write_json_lines(tmp_path / "ppo/evaluation.jsonl", rows)
    content = opened(tmp_path, Asked("pairs"), config)
    assert [task.prompt for task in content.tasks.values()] == talks


@pytest.mark.parametrize("value", [None, 3, ["a"]])
def test_an_answer_that_is_no_text_is_refused_by_its_line(tmp_path, config, value):
    file = tmp_path / "answers.jsonl"
    write_json_lines(file, [EVALUATED[0], EVALUATED[1] | {"ppo": value}])
    with pytest.raises(UserError, match=r"answers\.jsonl, line 2: `ppo` must be text"):
        opened(tmp_path, Asked("pairs", ("sft", "ppo"), answers=file), config)


def test_pairs_of_another_evaluation_have_the_names_of_its_candidates(tmp_path, config):
    file = tmp_path / "answers.jsonl"
    write_json_lines(file, [{"prompt": "p", "sft@4": "one", "ppo": "two"}])
    content = opened(tmp_path, Asked("pairs", ("sft@4", "ppo"), answers=file), config)
    assert [task.sources for task in content.tasks.values()] == [("sft@4", "ppo")]
    with pytest.raises(UserError, match=r"line 1: damaged \(without base\). Name other policies"):
        opened(tmp_path / "other", Asked("pairs", ("base", "ppo"), answers=file), config)


def test_prompts_of_the_stages(tmp_path, config):
    """Demonstrations of data.sft, without a model; a file's prompts all count."""
    content = opened(tmp_path, Asked("demonstrations", number=5), config)
    assert len(content.tasks) == 5 and not any(task.completions for task in content.tasks.values())
    file = tmp_path / "prompts.jsonl"
    write_json_lines(file, [{"prompt": f"p{i}"} for i in range(7)])
    content = opened(tmp_path / "file", Asked("demonstrations", prompts=file), config)
    assert len(content.tasks) == 7


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            {"each": 3},
            "the round there has answers 4, not 3. Leave the option out to continue it, or name",
        ),
        ({"number": 3}, "has prompts answers of .*, the first 4, not answers of .*, the first 3"),
        ({"policies": ("sft",)}, "--answers, --policy: one of them"),
    ],
)
def test_a_round_that_asks_something_else_is_refused(tmp_path, config, changes, fault):
    file = tmp_path / "answers.jsonl"
    write_json_lines(file, [*ROWS, *(ROWS[0] | {"prompt": f"q{i}"} for i in range(20))])
    asked = Asked("rankings", answers=file, number=4)
    before = opened(tmp_path, asked, config)
    assert opened(tmp_path, asked, config).tasks == before.tasks
    assert opened(tmp_path, Asked("rankings"), config).tasks == before.tasks  # the same command, in short
    with pytest.raises(UserError, match=fault):
        opened(tmp_path, replace(asked, **changes), config)


@pytest.mark.parametrize(
    ("asked", "fault"),
    [
        (Asked("pairs", ("sft",)), "a pair has the answers of two policies"),
        (Asked("rankings", ("sft", "ppo")), "rankings are of the answers of one policy"),
        (Asked("pairs"), "evaluation.jsonl is missing: stage ppo has not finished"),
        (Asked("ratings"), "not a run directory"),
    ],
)
def test_what_cannot_be_asked(tmp_path, config, asked, fault):
    with pytest.raises(UserError, match=fault):
        opened(tmp_path, asked, config)
    assert not (tmp_path / "round").exists()


def test_an_answer_that_no_stage_could_read_is_refused_before_it_is_sampled(tmp_path, config):
    kind: Kind = "rankings"
    with pytest.raises(UserError, match=r"rm.rankings.rollout.max_new_tokens: 128 tokens after a prompt"):
        opened(tmp_path, Asked(kind), config)


def test_a_link_in_the_folder_of_a_round_is_refused(tmp_path, config):
    file = pairs_of(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "round").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="round is a link"):
        opened(tmp_path, Asked("ratings", answers=file), config)


def test_several_sources_take_turns_if_only_some_prompts_are_wanted(tmp_path):
    for name in "ab":
        write_json_lines(tmp_path / f"{name}.jsonl", [{"prompt": f"{name}{i}"} for i in range(40)])
    sources = [{"path": str(tmp_path / f"{name}.jsonl"), "held_out": 3} for name in "ab"]
    words = [f"data.{stage}={json.dumps(sources)}" for stage in ("sft", "ppo")]
    config = load_experiment(TINY, [*words, "data.shares=null", "data.keep_apart=false"])
    content = opened(tmp_path / "sft", Asked("demonstrations", number=4), config)
    assert Counter(task.prompt[0] for task in content.tasks.values()) == {"a": 2, "b": 2}
    held_out = TrainedRun(RunDirectory(tmp_path), config, {}).rows("ppo", "prompts").held_out
    rows = [{"prompt": row["prompt"], "sft": "s", "ppo": "t"} for row in held_out]
    assert [row["prompt"][0] for row in rows] == [*"aaabbb"]
    (tmp_path / "pairs/ppo").mkdir(parents=True)
    write_json_lines(tmp_path / "pairs/ppo/evaluation.jsonl", rows)
    content = opened(tmp_path / "pairs", Asked("pairs", number=4), config)
    assert [task.prompt_source for task in content.tasks.values()] == ["a", "b", "a", "b"]
    every = open_round(tmp_path / "every", Asked("pairs"), config, RunDirectory(tmp_path / "pairs"), print)
    assert [task.prompt for task in every.tasks.values()] == [row["prompt"] for row in rows]


def test_a_round_knows_which_adapters_gave_its_answers(tmp_path, config, capsys):
    """Those of the evaluation, whatever was trained again before people were asked."""
    for stage in STAGES:
        write_stage(tmp_path, stage)
    file, then = tmp_path / "answers.jsonl", {"sft": "1" * 64, "rm": "2" * 64}
    write_json_lines(file, [{"prompt": f"p{i}", "sft@4": f"s{i}", "base+4": f"b{i}"} for i in range(3)])
    write_adapters(file, {"sft@4": then, "base+4": {}, "ppo": {"ppo": "3" * 64}})
    asked = Asked("pairs", ("sft@4", "base+4"), answers=file)
    settings = opened(tmp_path, asked, config).settings
    assert settings.adapters == then
    assert "a stage was trained again since the answers in" in capsys.readouterr().out
    assert not settings.is_stale(then) and settings.is_stale(then | {"rm": "4" * 64})
    write_json_lines(file, [{"prompt": "p", "sft@4": "s", "base+4": "b"}])  # the file is about other answers
    assert (
        open_round(tmp_path / "other", asked, config, RunDirectory(tmp_path), print).settings.adapters == {}
    )
    assert "no adapters.json beside" in capsys.readouterr().out


def test_answers_that_ppo_recorded_are_of_the_sft_that_it_began_with(tmp_path, config, capsys):
    before = write_stage(tmp_path, "sft")
    write_stage(tmp_path, "rm")
    ppo = write_stage(tmp_path, "ppo")
    write_json_lines(tmp_path / "ppo/evaluation.jsonl", EVALUATED)
    shutil.rmtree(tmp_path / "sft")
    write_stage(tmp_path, "sft", weights="others")
    assert before.output and ppo.output
    settings = opened(tmp_path, Asked("pairs"), config).settings
    assert settings.adapters == {"sft": before.output.sha256, "ppo": ppo.output.sha256}
    assert "a stage was trained again" in capsys.readouterr().out
