"""Which words of a command line name the experiment, where its runs go, and what `--help` looks like."""

from __future__ import annotations

import pytest

from configs.load import dump_experiment, load_experiment
from launch.run_stage import StageOptions
from tests.contract.bad_inputs.entry import check_message, tristage
from tests.support.pipeline_runs import write_stage
from tests.support.runs import ROOT, TINY


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Start from a folder that is not the project's."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        [TINY, "seed=5"],
        ["seed=5", TINY],
        ["--config", TINY, "seed=5"],
        ["--config", TINY, TINY, "seed=5"],
        ["--until", "sft", TINY, "seed=5"],
    ],
)
def test_a_word_that_is_no_setting_is_the_experiment(words, tmp_path):
    status, stdout, stderr = tristage("plan", *words, "--until", "sft")
    assert (status, stderr) == (0, "")
    assert f"experiment tiny, in {tmp_path}/runs/tiny" in stdout


@pytest.mark.parametrize("command", ["run", "plan", "status", "sweep", "report"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([TINY, "--config", "other.yaml"], f"{TINY}: the experiment is already other.yaml. Give one YAML."),
        ([TINY, "other.yaml"], f"other.yaml: the experiment is already {TINY}. Give one YAML."),
        (["seed"], "command line (seed): no value; write seed=VALUE"),
        (["ppo.kl_coef"], "command line (ppo.kl_coef): no value; write ppo.kl_coef=VALUE"),
        (["nowhere"], "nowhere: cannot be read: No such file or directory; give the path of a YAML"),
        (
            [ROOT],
            f"{ROOT}: a folder, not an experiment's YAML. To name a run directory, write --run-dir {ROOT}.",
        ),
        (["x" * 300], "File name too long"),
    ],
)
def test_a_word_that_is_neither_is_refused(command, words, message, tmp_path):
    status, stdout, stderr = tristage(command, *words)
    assert (status, stdout) == (2, "") and not list(tmp_path.iterdir())
    check_message(stderr, message)


def test_a_file_in_a_run_of_a_sweep_has_an_equals_sign_in_its_folder(tmp_path):
    (tmp_path / "kl_coef=0-seed=1").mkdir()
    file = tmp_path / "kl_coef=0-seed=1" / "config.yaml"
    file.write_text(dump_experiment(load_experiment(TINY)))
    status, stdout, _ = tristage("plan", file.relative_to(tmp_path))
    assert status == 0 and "experiment tiny" in stdout


def test_a_file_whose_name_is_a_key_is_a_file(tmp_path):
    (tmp_path / "seed").write_text(dump_experiment(load_experiment(TINY)))
    assert tristage("plan", "seed")[0] == 0


def test_runs_lie_below_the_current_folder_for_tristage_and_for_a_stage(tmp_path):
    write_stage(tmp_path / "runs" / "tiny", "sft")
    assert tristage("status", TINY)[0] == 0
    options = StageOptions(stage="sft", overrides=[str(TINY)])
    assert options.request("deepspeed").run.path == tmp_path / "runs" / "tiny"


def test_without_a_command_tristage_prints_its_help():
    assert tristage() == tristage("--help")
    assert tristage()[0] == 0


@pytest.mark.parametrize("command", [[], ["run"], ["plan"], ["status"], ["sweep"], ["report"]])
def test_flags_have_no_type_in_the_help(command):
    status, stdout, _ = tristage(*command, "--help")
    assert status == 0 and "--help" in stdout and "bool" not in stdout


@pytest.mark.parametrize("command", ["run", "plan", "status", "collect report"])
@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("", "--run-dir: '' is empty. Give a folder, or leave the option out."),
        ("file", "--run-dir: file: {}/file is a file. Name a folder."),
        ("file/below", "--run-dir: file/below: {}/file is a file. Name a folder."),
        ("/dev/null", "--run-dir: /dev/null: /dev/null is a file. Name a folder."),
    ],
)
def test_a_run_directory_that_can_be_none(command, folder, message, tmp_path):
    (tmp_path / "file").touch()
    words = [TINY] if command in ("run", "plan") else []
    status, _, stderr = tristage(*command.split(), *words, "--run-dir", folder)
    assert status == 2 and [path.name for path in tmp_path.iterdir()] == ["file"]
    check_message(stderr, message.format(tmp_path))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed=1", "rm.epochs=2", "seed=2"], "note: the first seed has no effect: seed is set after it\n"),
        (["sft.epochs=3", "sft={seed: 2}"], "note: the first sft.epochs has no effect: sft is set after it"),
        (["seed=2", "seed=2"], ""),
        (["sft={seed: 2}", "sft.epochs=3"], ""),
    ],
)
def test_a_setting_that_is_given_twice_is_told(words, said):
    status, stdout, stderr = tristage("plan", TINY, "--show-config", "--until", "sft", *words)
    assert status == 0 and "seed: 2" in stdout
    assert said in stderr if said else stderr == ""
