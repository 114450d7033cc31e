"""What `tristage plan` and `tristage sweep --plan` show, and in which order."""

from __future__ import annotations

import pytest

from configs.load import load_experiment
from launch import commands
from tests.contract.bad_inputs.entry import check_message, files, tristage
from tests.support.pipeline_runs import write_stage
from tests.support.runs import TINY

DEMO = TINY.with_name("demo.yaml")
QWEN = TINY.with_name("qwen3-8b.yaml")
DECISIONS = [
    "sft  run      has not run yet",
    "rm   run      has not run yet",
    "ppo  run      has not run yet",
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Start from a folder that is not the project's, on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "guess_accelerators", lambda: 0)


def test_decisions_come_first_and_last_and_all_of_it_fits_a_screen(material_checks):
    status, stdout, stderr = tristage("plan", DEMO)
    assert (status, stderr) == (0, "")
    lines = stdout.rstrip().splitlines()
    assert lines[4:7] == lines[-3:] == DECISIONS
    assert len(lines) < 40
    assert "kl_coef" not in stdout and "192 to train on, 96 held out" in stdout


def test_the_configuration_is_shown_on_demand():
    stdout = tristage("plan", DEMO, "--show-config")[1]
    assert "  kl_coef: 0.25\n" in stdout
    assert stdout.rstrip().splitlines()[-3:] == DECISIONS


def test_everything_that_is_refused_follows_the_first_decisions():
    status, stdout, stderr = tristage("plan", TINY, "data.ppo.path=none.jsonl", "--num-accelerators", "3")
    assert status == 2
    assert stdout.rstrip().splitlines()[4:] == DECISIONS
    check_message(
        stderr, "files:\n  data.ppo.path: ", "none.jsonl: there is no such file. Correct the path.\nmachine:"
    )
    check_message(stderr, "sft.batch_size: 8 cannot be shared equally by 3 ranks", "ppo.batch_size: 8 cannot")


def test_a_pattern_that_names_nothing_is_refused():
    status, _, stderr = tristage("plan", TINY, "data.ppo.path=none*.csv.gz")
    assert status == 2
    check_message(
        stderr, "error: data.ppo.path: ", "none*.csv.gz: no file has such a name. Correct the pattern"
    )


def test_a_blocked_stage_is_status_2_with_its_remedy():
    status, stdout, _ = tristage("plan", TINY, "--from", "rm")
    assert status == 2
    assert "rm   blocked  needs stage sft" in stdout
    assert f"Run it first: tristage run --from sft --until sft --config {TINY}" in stdout


def test_the_plan_of_a_recipe_for_several_gpus_says_that_there_is_none():
    status, stdout, _ = tristage("plan", QWEN)
    assert status == 0
    assert "this machine has no GPU: the stages run on its CPU, 1 rank" in stdout
    assert "hardware, by its YAML: for one node of 8 GPUs with 24 GB or more" in stdout
    assert "ZeRO-3, which shards over several GPUs. This machine has none" in stdout


def test_the_plan_of_a_recipe_for_several_gpus_on_one_gpu(monkeypatch):
    monkeypatch.setattr(commands, "guess_accelerators", lambda: 1)
    stdout = tristage("plan", QWEN)[1]
    assert "this machine has 1 GPU; the stages run on 1 rank" in stdout
    assert "On 1 rank it saves no memory" in stdout
    monkeypatch.setattr(commands, "guess_accelerators", lambda: 8)
    stdout = tristage("plan", QWEN)[1]
    assert "this machine has 8 GPUs; the stages run on 8 ranks" in stdout
    warnings = [line for line in stdout.splitlines() if line.startswith("warning")]
    assert all("is not on this machine, and the hub" in line for line in warnings), warnings


def test_the_plan_of_a_sweep(tmp_path):
    words = (TINY, "ppo.kl_coef=0,0.1", "--seeds", "2", "--plan")
    status, stdout, _ = tristage("sweep", *words)
    assert status == 0 and not list(tmp_path.iterdir())
    assert "best run      has not run yet" in stdout and "4 runs of ppo: run 4\n" in stdout
    assert "kl_coef=0.1-seed=1  run      has not run yet\n" in stdout
    for stage in ("sft", "rm"):
        write_stage(tmp_path / "runs/tiny", stage, config=load_experiment(TINY))
    run = tmp_path / "runs/tiny/sweep/kl_coef=0-seed=1"
    run.mkdir(parents=True)
    for stage in ("sft", "rm"):
        (run / stage).symlink_to(f"../../{stage}")
    name = "name=tiny-kl_coef_0-seed_1"
    write_stage(run, "ppo", config=load_experiment(TINY, ["ppo.kl_coef=0", "ppo.seed=1", name]))
    before = files(tmp_path)
    status, stdout, _ = tristage("sweep", *words)
    assert status == 0 and files(tmp_path) == before
    assert "sft  skip     finished with this configuration" in stdout
    assert "4 runs of ppo: run 3, skip 1\n" in stdout
    assert "kl_coef=0-seed=1    skip     finished with this configuration" in stdout
    assert (
        "kl_coef=0-seed=1    run      finished, but these changed"
        in tristage("sweep", *words, "sft.epochs=2")[1]
    )


def test_the_plan_of_a_large_sweep_is_short():
    stdout = tristage("sweep", TINY, "--seeds", "200", "--plan")[1]
    assert "200 runs of ppo: run 200\n" in stdout and stdout.rstrip().endswith("and 176 more")


def test_the_plan_of_a_sweep_that_is_refused(tmp_path):
    status, _, stderr = tristage("sweep", TINY, "--plan", "--num-accelerators", "3")
    assert status == 2 and not list(tmp_path.iterdir())
    check_message(stderr, "cannot be shared equally by 3 ranks")
