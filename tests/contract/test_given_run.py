"""What `key=value` words and options mean for a run that is there: no command takes one and ignores it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from apps.trained_run import open_run
from configs.load import dump_experiment
from data.people.round import KINDS
from launch import checking, collecting, commands, evaluating, first_steps, given_run, uses
from launch.arguments import ExperimentOptions
from tests.contract.bad_inputs.entry import check_message, tristage
from tests.support.pipeline_runs import toy, write_stage

MODULES = (checking, collecting, commands, evaluating, first_steps, uses)
# They plan or make what the words say. `tests/contract/test_plan.py` and others hold that.
MAKE = {"run", "plan", "sweep", "preview", *(f"collect {kind}" for kind in KINDS)}
SHOW = {"status", "report", "watch", "collect report", "evaluate rm"}
NEEDS = {"evaluate rm": ["--data", "rows.jsonl"]}
TAKE = {
    "export": "name",
    "evaluate": "ppo.judge, ppo.rollout",
    "serve": "ppo.rollout.max_new_tokens, ppo.rollout.temperature, ppo.rollout.top_k, ppo.rollout.top_p",
    "chat": "ppo.rollout.max_new_tokens, ppo.rollout.temperature, ppo.rollout.top_k, ppo.rollout.top_p",
}


def experiment_commands() -> Iterator[str]:
    """Every command whose options name an experiment."""
    apps = {"": commands.app, "check ": checking.app, "collect ": collecting.app, "evaluate ": evaluating.app}
    for prefix, app in apps.items():
        for registered in app.registered_commands:
            function: Any = registered.callback
            if issubclass(get_type_hints(function.__wrapped__)["options"], ExperimentOptions):
                yield (prefix + str(registered.name)).removesuffix(" policies")  # the default of its group


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that SFT and RM have finished, with seed 0."""
    run = tmp_path / "run"
    for stage in ("sft", "rm"):
        write_stage(run, stage)
    (run / "config.yaml").write_text(dump_experiment(toy()))
    return run


def test_every_command_is_known_to_this_test() -> None:
    assert set(experiment_commands()) == {*MAKE, *SHOW, *TAKE, "check rm"}


@pytest.mark.parametrize("name", sorted(SHOW | set(TAKE)))
def test_a_word_that_would_change_nothing_is_refused(name: str, run: Path) -> None:
    status, stdout, error = tristage(*name.split(), *NEEDS.get(name, []), "--run-dir", run, "seed=7")
    assert (status, stdout) == (2, "")
    takes = f"takes only overrides of {TAKE[name]}" if name in TAKE else "leaves it as it is"
    check_message(error, f"seed=7: {run} was trained with 0, and tristage {name} {takes}. Leave the override")


@pytest.mark.parametrize(
    "word", ["ppo.kl_coef=9", "name=other", "data.sft.path=x.jsonl", "tracking.wandb=online"]
)
def test_check_rm_takes_only_what_trains_a_reward_model(word: str, run: Path) -> None:
    status, _, error = tristage("check", "rm", "--run-dir", run, word)
    assert status == 2
    check_message(error, word.partition("=")[0], "tristage check rm takes only overrides of adapter, base, ")


@pytest.mark.parametrize("name", sorted(SHOW | set(TAKE)))
@pytest.mark.parametrize(
    ("word", "message"), [("seeds=7", "seeds: unknown"), ("seed=x", "seed"), ("seed", "no value")]
)
def test_a_word_is_read_even_if_it_changes_nothing(name: str, word: str, message: str, run: Path) -> None:
    status, _, error = tristage(*name.split(), *NEEDS.get(name, []), "--run-dir", run, word)
    assert status == 2
    check_message(error, message)


def test_words_of_the_training_and_of_no_run_yet_are_fine(run: Path, tmp_path: Path) -> None:
    assert tristage("status", "--run-dir", run, "seed=0", "ppo.kl_coef=0.05")[0] == 0
    assert tristage("report", "--run-dir", run, "sft.epochs=1")[0] == 0
    status, _, error = tristage("status", "--run-dir", tmp_path / "none", "seed=7")
    assert status == 2 and "seed" not in error


def test_words_that_are_obeyed_reach_the_run(run: Path) -> None:
    words = ["ppo.rollout.temperature=0.5", "ppo.judge=warmth"]
    options = evaluating.EvaluateOptions(run_dir=run, overrides=words)
    found = given_run.given_run(options, "tristage evaluate", ["ppo.judge", "ppo.rollout"])
    opened = open_run(found.path, words)
    assert (opened.config.ppo.rollout.temperature, opened.config.ppo.judge) == (0.5, "warmth")
    assert open_run(run).config.ppo.rollout.temperature == 1.0


def test_a_yaml_that_says_something_else_than_the_run_is_told(run: Path) -> None:
    file = run / "edited.yaml"
    file.write_text(dump_experiment(toy(seed=7, sft__epochs=3)))
    status, _, error = tristage("status", file, "--run-dir", run)
    assert status == 0
    assert f"note: {file} is not what {run} was trained with (seed, sft.epochs)" in error
    file.write_text(dump_experiment(toy()))
    assert tristage("status", file, "--run-dir", run)[2] == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "--format", "adapter", "--dtype", "fp16"], "--dtype: means nothing for --format adapter"),
        (
            ["export", "--stage", "rm", "--compare-16bit"],
            "--compare-16bit: means nothing for --format",
        ),
        (["export", "--converter", "x"], "--converter: means nothing for --format merged, only for gguf"),
        (["collect", "demonstrations", "--overlap", "0.5"], "No such option: --overlap"),
        (["collect", "demonstrations", "--again", "0.5"], "No such option: --again"),
        (["collect", "ratings", "--answers", "a.jsonl", "--prompts", "b.jsonl"], "--answers, --prompts: one"),
        (
            ["collect", "rankings", "--answers", "a.jsonl", "-k", "3"],
            "-k: the file of --answers says",
        ),
        (["collect", "pairs", "-k", "3"], "No such option: -k"),
    ],
)
def test_an_option_that_means_nothing_here_is_refused(words: list[str], message: str, run: Path) -> None:
    status, _, error = tristage(*words, "--run-dir", run)
    assert status == 2
    check_message(error, message)


def test_every_option_of_every_command_is_read() -> None:
    """A field of an options class that no line of `launch` reads would be taken and ignored."""
    folder = Path(commands.__file__).parent
    text = "".join(file.read_text() for file in folder.glob("*.py"))
    classes = {
        value
        for module in MODULES
        for value in vars(module).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__name__.endswith("Options")
    }
    names = {field.name for each in classes for field in dataclasses.fields(each)}
    read = {name for name in names if any(f"{owner}.{name}" in text for owner in ("options", "self"))}
    asked = {name for name in names - read if f'options, "{name}"' in text}
    assert classes and names == read | asked
