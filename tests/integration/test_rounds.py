"""Two rounds of the tiny experiment, from end to end, by the commands that the first one prints."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from pipeline.reporting.report import write_report
from tests.support.runs import (
    KILLED_STAGE,
    RUN_STAGE,
    assert_same_result,
    files,
    rows,
    run_stage,
    start,
    start_warm,
)

OVERRIDES = (
    "rm.rankings.labeller=tests.support.letters:vowels",
    "rm.rankings.rollout={max_new_tokens: 8}",
    "data.rm.limit=24",
    "ppo.judge=tests.support.letters:vowels",
)
TRISTAGE = (sys.executable, "-P", "-m", "launch.cli")


def tristage(*words: str | Path, status: int = 0) -> str:
    result = start([*TRISTAGE, *words])
    assert result.returncode == status, result.stdout
    return result.stdout


def stage(name: str, run: Path, when: str = "", status: int = 0) -> None:
    """One stage of a round, killed at `when` if it is given."""
    config = run / "config.yaml"
    program = [KILLED_STAGE, when] if when else [RUN_STAGE]
    result = start_warm([*program, "--stage", name, "--config", config, "--run-dir", run])
    assert result.returncode == status, result.stdout


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("rounds") / "tiny"
    for name in ("sft", "rm", "ppo"):
        run_stage(name, run, *OVERRIDES)
    return run


@pytest.fixture(scope="module")
def second(first: Path) -> Path:
    """The second round, by the very commands that the first prints."""
    output = tristage("round", "--from", first)
    run = first.with_name("tiny-round-2")
    assert f"next: tristage run --config {run}/config.yaml --run-dir {run}" in output
    shutil.copytree(run, first.with_name("untouched"))
    tristage("run", "--config", run / "config.yaml", "--run-dir", run)
    return run


def test_the_policy_is_that_of_the_first_round(first, second) -> None:
    tensors = "adapter_model.safetensors"
    before, start, after = (
        run / folder / tensors
        for run, folder in ((first, "ppo/adapter"), (second, "sft/adapter"), (second, "ppo/adapter"))
    )
    assert before.read_bytes() == start.read_bytes() != after.read_bytes()
    logged = next(row for row in rows(second / "ppo/metrics.jsonl") if "objective/kl" in row)
    assert logged["objective/kl"] == pytest.approx(0, abs=1e-4), "the reference is where it starts"


def test_the_reward_model_learned_the_rankings_of_both(first, second) -> None:
    own, earlier = rows(second / "rm/rankings.jsonl"), rows(second / "start/rankings-1.jsonl")
    assert earlier == rows(first / "rm/rankings.jsonl")
    assert [row["prompt"] for row in own] == [row["prompt"] for row in earlier]
    assert [row["completions"] for row in own] != [row["completions"] for row in earlier]
    joined = [row for row in earlier if max(row["ranks"]) > 0]
    train = sum(row["split"] == "train" for row in joined)
    log = (second / "rm/logs/rank0.log").read_text()
    assert f"rm.rankings.earlier: {train} rankings to train on and {len(joined) - train} held out" in log
    assert " are in the split that this round gives their prompts" not in log, "rounds split alike"


def test_lineage_is_shown(first, second, tmp_path) -> None:
    words = f"round 2, from the policy of stage ppo in {first}"
    assert words in tristage("status", "--run-dir", second)
    assert words in write_report(second).read_text()
    assert f"{first}" in tristage("compare", first, second, "--out", tmp_path / "comparison")
    manifest = json.loads((second / "rm/manifest.json").read_text())
    assert manifest["config"]["lineage"]["parents"] == [str(first)]
    assert len(manifest["sources"]["rm.rankings.earlier[0]"]) == 64


@pytest.mark.parametrize(("name", "when"), [("rm", "2"), ("ppo", "2")])
def test_a_killed_stage_of_a_round_resumes_bit_for_bit(name: str, when: str, first, second, tmp_path) -> None:
    run = second.with_name(f"killed-{name}")
    shutil.copytree(second, run, ignore=shutil.ignore_patterns(*{"rm", "ppo"} - ({"rm"} - {name})))
    stage(name, run, when, status=-9)
    stage(name, run)
    assert_same_result(run / name, second / name)


def test_changed_rankings_of_an_earlier_round_block_what_learned_them(second, tmp_path) -> None:
    run = shutil.copytree(second, tmp_path / "run")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(second), str(run)))
    file = run / "start/rankings-1.jsonl"
    before = files(run / "rm")
    file.write_text(file.read_text() + file.read_text().splitlines()[0] + "\n")
    output = tristage("plan", "--config", config, "--run-dir", run)
    assert "rm.rankings.earlier[0]: the file's content is not what it was" in output
    file.unlink()
    output = tristage("run", "--config", config, "--run-dir", run, status=2)
    assert "rm.rankings.earlier[0]" in output and "there is no such file" in output
    assert files(run / "rm") == before


def test_an_unfinished_run_makes_no_round(first, tmp_path) -> None:
    run = shutil.copytree(first, tmp_path / "run", ignore=shutil.ignore_patterns("ppo"))
    output = tristage("round", "--from", run, status=2)
    assert "stage ppo has not run" in output
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
