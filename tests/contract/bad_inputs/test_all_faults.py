"""`tristage plan` and `run` tell all that is wrong at once, in groups, and what depends on it not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.load import ExperimentError, load_experiment
from pipeline.planning.faults import Faults
from pipeline.planning.stage_checks import run_preflight
from tests.contract.bad_inputs.entry import GOOD, VALID, experiment, files, tristage, write_rows
from tests.support.pipeline_runs import write_stage

FUNCTIONS = """import os
def ends(prompts, completions): os.kill(os.getpid(), 9)
def fails(prompts, completions): 1 / 0
"""


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with an experiment whose data is right, and a module of functions."""
    experiment(tmp_path)
    for stage in ("sft", "rm", "ppo"):
        write_rows(tmp_path / f"{stage}.jsonl", GOOD)
    (tmp_path / "theirs.py").write_text(FUNCTIONS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def write(folder: Path, data: str = "", rest: str = "") -> Path:
    """An experiment with more keys in `data`, and more lines."""
    text = VALID.replace("data:\n", f"data:\n  max_length: 256\n  max_prompt_length: 128\n{data}")
    (folder / "trial.yaml").write_text(text + rest)
    return folder / "trial.yaml"


def groups_of(message: str) -> dict[str, str]:
    """The text of each group."""
    groups, lines = dict[str, list[str]](), list[str]()
    first, *others = message.splitlines()
    assert first == "error: nothing has started. Correct these first."
    for line in others:
        if line.startswith("  "):
            lines.append(line)
        else:
            groups[line.removesuffix(":")] = lines = []
    return {name: "\n".join(text) for name, text in groups.items()}


@pytest.mark.usefixtures("material_checks")
@pytest.mark.parametrize("command", ["plan", "run"])
def test_every_kind_of_fault_of_every_stage(
    command: str, trial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (trial / "constant.jinja").write_text("Hello{% if add_generation_prompt %}\nAnswer: {% endif %}")
    template = f"  chat: true\n  chat_template: {trial}/constant.jinja\n"
    rest = (
        "sft: {learning_rat: 0.1}\n"
        "rm: {rankings: {labeller: judge.yaml}}\n"
        "ppo: {iterations: none, rewards: [{source: 'theirs:fails'}]}\n"
    )
    write_rows(trial / "ppo.jsonl", [{"prompt": "", "completion": "a"}])
    (trial / "sft.jsonl").unlink()
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    before = files(trial)
    status, _, err = tristage(command, write(trial, template, rest))
    assert status == 2 and files(trial) == before | {"trial.yaml": (trial / "trial.yaml").read_bytes()}
    groups = groups_of(err)
    assert list(groups) == [
        "configuration",
        "environment",
        "files",
        "bases and chat templates",
        "data",
        "labellers, judges and rewards",
    ]
    assert "sft.learning_rat: unknown key; did you mean sft.learning_rate?" in groups["configuration"]
    assert "ppo.iterations: 'none' is not allowed" in groups["configuration"]
    assert "WANDB_MODE" in groups["environment"]
    assert "data.sft.path: " in groups["files"] and "rm.rankings.labeller: " in groups["files"]
    assert "changes what the user says" in groups["bases and chat templates"]
    assert "ppo.jsonl: 1 of 1 rows cannot serve as prompts" in groups["data"]
    assert "theirs:fails raised ZeroDivisionError" in groups["labellers, judges and rewards"]


@pytest.mark.usefixtures("material_checks")
def test_what_a_wrong_key_decides_is_not_guessed(trial: Path) -> None:
    """With defaults in their places, no example would fit, and data.rm would be missing."""
    write_rows(trial / "sft.jsonl", [{"prompt": "p " * 400, "completion": "a"}])
    (trial / "rm.jsonl").unlink()
    file = write(trial)
    words = ("data.max_lenght=4000", "data.max_prompt_length=many", "data.rm.path=[1]", "rm.loss.margin=yes")
    status, _, err = tristage("plan", file, *words)
    assert status == 2 and "nothing has started" not in err
    assert err.count("command line (") == len(err.strip().splitlines()) == 4


@pytest.mark.usefixtures("material_checks")
def test_blocked_stages_batches_and_data_of_a_run(trial: Path) -> None:
    file = write(trial)
    write_stage(trial / "runs/trial", "sft", config=load_experiment(file))
    (trial / "runs/trial/sft/adapter/adapter_model.safetensors").write_text("{}")
    write_rows(trial / "ppo.jsonl", [{"prompt": "", "completion": "a"}])
    status, _, err = tristage("run", file, "--from", "rm", "--num-accelerators", "3")
    assert status == 2
    groups = groups_of(err)
    assert "stage rm: needs stage sft, which is damaged" in groups["stages"]
    assert "ppo.batch_size: 64 cannot be shared equally by 3 ranks" in groups["machine"]
    assert "ppo.jsonl: 1 of 1 rows cannot serve as prompts" in groups["data"]


def test_a_function_that_ends_the_process_does_not_hide_the_next(trial: Path) -> None:
    rewards = "[{source: 'theirs:fails'}, {source: 'theirs:none'}]"
    rest = (
        f"rm: {{rankings: {{labeller: 'theirs:ends'}}}}\nppo: {{judge: 'theirs:ends', rewards: {rewards}}}\n"
    )
    faults = Faults()
    run_preflight(load_experiment(write(trial, rest=rest)), ["rm", "ppo"], faults, only_feedback=True)
    with pytest.raises(Exception, match="theirs:fails") as caught:
        faults.refuse()
    message = str(caught.value)
    assert "rm.rankings.labeller: theirs:ends ended its process with status -9" in message
    assert "ppo.judge: theirs:ends ended its process with status -9" in message
    assert "ppo.rewards: the module 'theirs' has no function 'none'" in message


def test_a_fault_is_told_once_and_a_single_group_has_no_heading() -> None:
    faults = Faults()
    faults.refuse()
    faults.add("data", "first\n  its row")
    faults.add("adapters", "first\n  its row")
    faults.add("data", "second")
    with pytest.raises(Exception, match=r"\Afirst\n  its row\nsecond\Z"):
        faults.refuse()


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("base: {model: tiny-random}\n", {("name",), ("data",)}),
        ("name: trial\n", {("base",), ("data",)}),
        (VALID + "sft: 3\n", {("sft",)}),
        (VALID + "sft: {learning_rat: 1}\n", {("sft", "learning_rat"), ("sft", "learning_rate")}),
        (
            VALID + "ppo: {rewards: [{source: 3}], kl_coef: -1}\n",
            {("ppo", "rewards", "0", "source"), ("ppo", "kl_coef")},
        ),
        (VALID + "seed: none\nadapter: {r: 1.5}\n", {("seed",), ("adapter", "r")}),
        (VALID + "nothing: 1\n", {("nothing",)}),
    ],
)
def test_the_right_part_of_an_experiment(text: str, wrong: set[tuple[str, ...]], tmp_path: Path) -> None:
    with pytest.raises(ExperimentError) as caught:
        load_experiment(experiment(tmp_path, text))
    assert caught.value.wrong == wrong
    rest = caught.value.rest
    assert rest is not None and rest.base.model == "tiny-random"
    assert rest.sft.learning_rate == 2e-4


@pytest.mark.parametrize("text", ["", "[1, 2]", "name: [", "name: 1\n\tbase: 2"])
def test_a_file_that_is_no_experiment_has_no_right_part(text: str, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError) as caught:
        load_experiment(experiment(tmp_path, text))
    assert caught.value.rest is None
