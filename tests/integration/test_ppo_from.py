"""`ppo.from`: a further round of PPO, whose KL is to SFT or to the policy that it starts from."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.runs import (
    KILLED_STAGE,
    RUN_STAGE,
    assert_same_result,
    copy_upstream,
    files,
    metrics,
    rows,
    run_stage,
    stage_arguments,
    start_warm,
)
from tests.support.starts import ATTENTION, write_policy

ADAPTER = "adapter_model.safetensors"
JUDGE = "ppo.judge=warmth"
# Log-probabilities by the model that trains, so that the KL of a policy to itself is exactly 0.
EXACT = (JUDGE, "ppo.old_logprobs=recomputed")


@pytest.fixture(scope="module")
def first(trained_run: Path) -> Path:
    """The adapter of the first round."""
    return trained_run / "ppo" / "adapter"


def second_round(trained_run: Path, run_dir: Path, *overrides: str) -> Path:
    """The folder of a second round of PPO on the SFT policy and reward model of the first."""
    run_stage("ppo", copy_upstream(trained_run, "ppo", run_dir), *overrides)
    return run_dir / "ppo"


@pytest.fixture(scope="module")
def to_sft(trained_run: Path, first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return second_round(trained_run, tmp_path_factory.mktemp("sft"), f"ppo.from={first}", *EXACT)


@pytest.fixture(scope="module")
def to_start(trained_run: Path, first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    overrides = (f"ppo.from={first}", "ppo.reference=from", *EXACT)
    return second_round(trained_run, tmp_path_factory.mktemp("from"), *overrides)


@pytest.mark.parametrize("kind", ["to_sft", "to_start"])
def test_it_starts_where_the_first_round_ended(
    trained_run: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """The evaluation before its first update is that of the first round's result."""
    ended = metrics(trained_run / "ppo/manifest.json")
    start = rows(request.getfixturevalue(kind) / "metrics.jsonl")[0]
    assert start["step"] == 0
    assert start["eval/score"] == pytest.approx(ended["rm_score_ppo"])
    assert start["eval/gold"] == pytest.approx(ended["gold_ppo"])
    assert start["eval/length"] == ended["mean_length"]


def test_the_kl_is_to_the_sft_policy(trained_run: Path, to_sft: Path) -> None:
    log = rows(to_sft / "metrics.jsonl")
    assert log[0]["eval/kl"] == pytest.approx(metrics(trained_run / "ppo/manifest.json")["kl"], abs=1e-4)
    assert log[1]["objective/kl"] != 0, "the first rollout is some way off already"
    assert log[1]["objective/non_score_reward"] == pytest.approx(-0.05 * log[1]["objective/kl"])


def test_the_kl_is_to_the_starting_policy(to_start: Path) -> None:
    log = rows(to_start / "metrics.jsonl")
    assert log[0]["eval/kl"] == 0 and log[1]["objective/kl"] == 0 and log[2]["objective/kl"] != 0


def test_sft_is_the_sft_policy_whatever_the_reference(
    trained_run: Path, to_sft: Path, to_start: Path
) -> None:
    columns = [
        [(row["base"], row["sft"]) for row in rows(folder / "evaluation.jsonl")]
        for folder in (trained_run / "ppo", to_sft, to_start)
    ]
    assert columns[0] == columns[1] == columns[2]
    figures = [metrics(folder / "manifest.json") for folder in (trained_run / "ppo", to_sft, to_start)]
    assert len({(row["gold_sft"], row["rm_score_sft"]) for row in figures}) == 1


def test_the_policy_moves_from_it(first: Path, to_start: Path) -> None:
    before, after = (load_file(folder / ADAPTER) for folder in (first, to_start / "adapter"))
    steps = [float((after[name] - before[name]).abs().max()) for name in before]
    assert before.keys() == after.keys() and min(steps) > 0 and max(steps) < 0.1


def test_lineage_is_in_the_manifest(first: Path, to_sft: Path, trained_run: Path, tmp_path: Path) -> None:
    manifest = json.loads((to_sft / "manifest.json").read_text())
    assert manifest["config"]["ppo"]["from"] == str(first) and len(manifest["sources"]["ppo.from"]) == 64
    run_dir, copy = copy_upstream(trained_run, "ppo", tmp_path / "run"), tmp_path / "copy"
    shutil.copytree(first, copy)
    overrides = (f"ppo.from={copy}", "ppo.iterations=1", JUDGE)
    run_stage("ppo", run_dir, *overrides)
    (copy / "README.md").write_text("another")
    output = run_stage("ppo", run_dir, *overrides).stdout
    assert "finished, but these changed: ppo.from: the file's content is not what it was" in output


@pytest.mark.parametrize("reference", ["sft", "from"])
def test_killed_and_resumed_is_as_if_never_killed(
    trained_run: Path, first: Path, tmp_path: Path, reference: str
) -> None:
    """With the limit on the KL and the average, whose parts are in the checkpoint, too."""
    overrides = (
        *(f"ppo.from={first}", f"ppo.reference={reference}", "ppo.max_kl=1e9", "ppo.ema_decay=0.5"),
        *("ppo.rollout.top_k=20", JUDGE),
    )
    whole = second_round(trained_run, tmp_path / "whole", *overrides)
    run_dir = copy_upstream(trained_run, "ppo", tmp_path / "killed")
    killed = start_warm([KILLED_STAGE, "2", *stage_arguments("ppo", run_dir, *overrides)])
    assert killed.returncode == -signal.SIGKILL, killed.stdout
    assert "resumes from step-000001" in run_stage("ppo", run_dir, *overrides).stdout
    assert_same_result(run_dir / "ppo", whole)
    assert files(run_dir / "ppo/adapter-ema") == files(whole / "adapter-ema")
    assert rows(run_dir / "ppo/evaluation.jsonl") == rows(whole / "evaluation.jsonl")
    truncation = {"sft": "kl_sft", "from": "kl_from"}
    figures = metrics(whole / "manifest.json")
    assert {name for name in truncation.values() if name in figures} == {truncation[reference]}
    assert figures[truncation[reference]] > 0


@pytest.mark.parametrize("engine", ["hf", "merged", "continuous"])
def test_an_adapter_on_other_layers_than_sfts(
    trained_run: Path, tiny_folder: Path, tmp_path: Path, engine: str
) -> None:
    """The result has the layers of the adapter. All policies of the comparison sample with each engine."""
    foreign = write_policy(tiny_folder, tmp_path / "foreign")
    overrides = ("ppo.iterations=1", f"ppo.rollout.engine={engine}", *EXACT)
    folder = second_round(
        trained_run, tmp_path / "run", f"ppo.from={foreign}", "ppo.reference=from", *overrides
    )
    config = json.loads((folder / "adapter/adapter_config.json").read_text())
    assert config["target_modules"] == list(ATTENTION)
    assert load_file(folder / "adapter" / ADAPTER).keys() == load_file(foreign / ADAPTER).keys()
    assert rows(folder / "metrics.jsonl")[1]["objective/kl"] == 0
    sft = [row["sft"] for row in rows(folder / "evaluation.jsonl")]
    assert sft == [row["sft"] for row in rows(trained_run / "ppo/evaluation.jsonl")]


def test_a_start_above_the_limit_is_refused_at_once(trained_run: Path, first: Path, tmp_path: Path) -> None:
    run_dir = copy_upstream(trained_run, "ppo", tmp_path)
    options = (f"ppo.from={first}", "ppo.max_kl=1e-9", *EXACT)
    output = run_stage("ppo", run_dir, *options, status=2).stdout
    assert "ppo.max_kl: the policy starts" in output and "nats per response from the SFT policy" in output
    assert "Raise the limit. Or set ppo.reference to from." in output
    assert not (run_dir / "ppo/adapter").exists()
    output = run_stage("ppo", run_dir, *options, "ppo.reference=from", "ppo.iterations=2").stdout
    assert "training ends after 1 of 2 steps" in output
    kept, start = (load_file(folder / ADAPTER) for folder in (run_dir / "ppo/adapter", first))
    assert all(torch.equal(kept[name], start[name]) for name in start), "the last policy within the limit"


def test_the_stage_does_not_move_away_what_it_starts_from(trained_run: Path, tmp_path: Path) -> None:
    run_dir = copy_upstream(trained_run, "ppo", tmp_path)
    shutil.copytree(trained_run / "ppo", run_dir / "ppo")
    output = run_stage("ppo", run_dir, f"ppo.from={run_dir / 'ppo/adapter'}", JUDGE, status=2).stdout
    assert "lies in the folder of stage ppo, which runs again" in output
    assert "Copy the adapter to a folder outside of the run directory" in output
    assert (run_dir / "ppo/adapter" / ADAPTER).is_file()


@pytest.mark.distributed
def test_two_ranks_that_shard_the_base_do_the_same(
    trained_run: Path, first: Path, to_start: Path, tmp_path: Path
) -> None:
    run_dir = copy_upstream(trained_run, "ppo", tmp_path)
    overrides = (f"ppo.from={first}", "ppo.reference=from", "deepspeed.config=configs/deepspeed/zero3.json")
    result = start_warm([RUN_STAGE, *stage_arguments("ppo", run_dir, *overrides, *EXACT)], ranks=2)
    assert result.returncode == 0, result.stdout
    two, one = (metrics(folder / "manifest.json") for folder in (run_dir / "ppo", to_start))
    assert two["rm_score_ppo"] == pytest.approx(one["rm_score_ppo"], abs=1e-3)
    assert two["kl"] == pytest.approx(one["kl"], abs=1e-3)
