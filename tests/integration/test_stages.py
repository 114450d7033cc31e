"""The three stages from their entry points: separately, under the orchestrator, killed and resumed.

Dropout is on so that the random numbers of training matter.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from configs.schema import STAGES, Stage
from tests.chaos.damage import cases
from tests.support.runs import (
    KILLED_STAGE,
    RUN_STAGE,
    TINY,
    assert_same_result,
    copy_upstream,
    files,
    launcher,
    rows,
    run_stage,
    stage_arguments,
    start,
    start_warm,
)

OVERRIDES = ("ppo.judge=warmth", "adapter.dropout=0.1")
ALWAYS = ("wall_seconds", "peak_memory_bytes", "steps", "tokens_per_second")
INTERVALS = {
    "sft": (),
    "rm": ("accuracy", "margin", "eval_loss"),
    "ppo": (
        *("gold_base", "gold_sft", "gold_ppo", "rm_score_sft", "rm_score_ppo"),
        *("win_rate", "kl", "mean_length"),
    ),
}


@pytest.fixture(scope="module")
def separate_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose stages were launched one by one."""
    run_dir = tmp_path_factory.mktemp("apart")
    for stage in STAGES:
        result = start([*launcher(1), RUN_STAGE, *stage_arguments(stage, run_dir, *OVERRIDES)])
        assert result.returncode == 0, result.stdout
    return run_dir


@pytest.fixture(scope="module")
def orchestrated_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same under `tristage run`, without a working compiler, and with locks of a killed build."""
    run_dir, extensions = (tmp_path_factory.mktemp(name) for name in ("together", "extensions"))
    for operation in ("deepspeed_shm_comm", "deepspeed_ccl_comm", "cpu_adam"):
        (extensions / operation).mkdir()
        (extensions / operation / "lock").touch()
    compiler, compiler_call = extensions / "compiler", extensions / "called"
    compiler.write_text(f"#!/bin/sh\n: > {compiler_call}\nexit 1\n")
    compiler.chmod(0o755)
    variables = {"PATH": str(Path(sys.executable).parent), "CC": str(compiler), "CXX": str(compiler)}
    variables["TORCH_EXTENSIONS_DIR"] = str(extensions)
    options = ["--config", str(TINY), "--run-dir", str(run_dir)]
    command = [sys.executable, "-m", "launch.cli", "run", *options, *OVERRIDES]
    result = start(command, variables=variables)
    assert result.returncode == 0, result.stdout
    assert not compiler_call.exists(), "a compiler that is killed leaves temporary files"
    return run_dir


@pytest.mark.parametrize("stage", STAGES)
def test_manifest_has_the_figures(separate_run: Path, stage: str) -> None:
    manifest = json.loads((separate_run / stage / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    metrics = manifest["metrics"]
    plain = {"sft": ("eval_loss_before", "eval_loss")}.get(stage, ())
    assert {*ALWAYS, *plain} <= metrics.keys()
    for name in INTERVALS[stage]:
        assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]
        assert metrics[f"{name}_n"] == 8
    if stage == "sft":
        assert metrics["eval_loss_n"] == 8
    assert metrics["wall_seconds"] > 0 and metrics["peak_memory_bytes"] > 1e8
    kept = metrics["examples"] + metrics["examples_held_out"]
    assert (
        metrics["examples_held_out"] == 8 and kept == metrics["rows_read"] - metrics["rows_of_other_stages"]
    )


def test_ppo_leaves_answers_to_look_at(separate_run: Path) -> None:
    names = {"prompt", "kl", *("base", "sft", "ppo")}
    names |= {f"{figure}_{role}" for figure in ("gold", "score") for role in ("base", "sft", "ppo")}
    evaluation = rows(separate_run / "ppo" / "evaluation.jsonl")
    assert len(evaluation) == 8 and all(row.keys() == names for row in evaluation)


@pytest.mark.parametrize("stage", STAGES)
def test_adapters_are_plain_peft_folders(separate_run: Path, tiny_folder: Path, stage: str) -> None:
    folder = separate_run / stage / "adapter"
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), str(folder))
    saved = load_file(folder / "adapter_model.safetensors")
    loaded = {
        name.replace(".default", ""): parameter
        for name, parameter in model.named_parameters()
        if "lora_" in name
    }
    assert loaded.keys() == saved.keys()
    for name, tensor in saved.items():
        assert tensor.dtype == torch.float32 and torch.equal(loaded[name], tensor), name
        assert tensor.any(), f"{name} was never trained"
    assert (folder / "head.safetensors").exists() == (stage == "rm")


def test_each_stage_starts_from_the_one_before_and_moves(separate_run: Path) -> None:
    weights = {
        stage: load_file(separate_run / stage / "adapter" / "adapter_model.safetensors") for stage in STAGES
    }
    for stage in ("rm", "ppo"):
        for name, tensor in weights["sft"].items():
            assert not torch.equal(weights[stage][name], tensor), f"{stage} did not train {name}"
            assert torch.allclose(weights[stage][name], tensor, atol=0.05), f"{stage} did not start from sft"


@pytest.mark.parametrize("stage", STAGES)
def test_orchestrator_gives_the_same_as_the_stages_one_by_one(
    separate_run: Path, orchestrated_run: Path, stage: str
) -> None:
    assert_same_result(orchestrated_run / stage, separate_run / stage)


def test_orchestrator_ends_with_a_report(orchestrated_run: Path) -> None:
    assert {"report.md", "index.html"} <= files(orchestrated_run / "report").keys()


@pytest.mark.parametrize(("stage", "step"), [("sft", 3), ("rm", 3), ("ppo", 2)])
def test_killed_and_resumed_is_as_if_never_killed(
    separate_run: Path, tmp_path: Path, stage: Stage, step: int
) -> None:
    run_dir = copy_upstream(separate_run, stage, tmp_path)
    command = stage_arguments(stage, run_dir, *OVERRIDES)
    killed = start_warm([KILLED_STAGE, str(step), *command])
    assert killed.returncode == -signal.SIGKILL, killed.stdout
    checkpoints = sorted(path.name for path in (run_dir / stage / "checkpoints").glob("step-*"))
    assert checkpoints == [f"step-{step - 1:06d}"]
    assert rows(run_dir / stage / "metrics.jsonl")[-1]["step"] == step, "there is nothing to forget"
    assert not (run_dir / stage / "adapter").exists()

    resumed = run_stage(stage, run_dir, *OVERRIDES)
    assert "resum" in resumed.stdout
    assert_same_result(run_dir / stage, separate_run / stage)
    if stage == "ppo":
        evaluation = "evaluation.jsonl"
        assert (run_dir / stage / evaluation).read_bytes() == (separate_run / stage / evaluation).read_bytes()


@pytest.mark.parametrize(("stage", "steps"), [("sft", 6), ("rm", 4)])
def test_killed_after_the_last_checkpoint_repeats_nothing(
    separate_run: Path, tmp_path: Path, stage: Stage, steps: int
) -> None:
    run_dir = copy_upstream(separate_run, stage, tmp_path)
    killed = start_warm([KILLED_STAGE, "end", *stage_arguments(stage, run_dir, *OVERRIDES)])
    assert killed.returncode == -signal.SIGKILL, killed.stdout
    assert (run_dir / stage / "checkpoints" / f"step-{steps:06d}").exists()
    assert not (run_dir / stage / "adapter").exists()
    run_stage(stage, run_dir, *OVERRIDES)
    assert_same_result(run_dir / stage, separate_run / stage)


def test_ppo_does_not_resume_on_another_split(separate_run: Path, tmp_path: Path) -> None:
    """Its prompts are those of SFT, too, so that `data.sft` decides which it trains on and holds out."""
    run_dir, sft, ppo = copy_upstream(separate_run, "ppo", tmp_path / "run"), *map(tmp_path.joinpath, "ab")
    for copy in (sft, ppo):
        shutil.copy(TINY.parents[1] / "data" / "samples" / "tiny-sft.jsonl", copy.with_suffix(".jsonl"))
    command = (*OVERRIDES, f"data.sft.path={sft}.jsonl", f"data.ppo.path={ppo}.jsonl", "data.ppo.held_out=4")
    killed = start_warm([KILLED_STAGE, "2", *stage_arguments("ppo", run_dir, *command)])
    assert killed.returncode == -signal.SIGKILL, killed.stdout
    before = (run_dir / "ppo" / "metrics.jsonl").read_text()

    def refused(*overrides: str) -> str:
        said = run_stage("ppo", run_dir, *command, *overrides, status=2).stdout
        assert "resumes from step-000001" in said and "Traceback" not in said
        assert "stage ppo: its training and held-out prompts are not those on which it began. " in said
        assert (run_dir / "ppo" / "metrics.jsonl").read_text() == before
        return said

    assert "data.sft.held_out: 8.0 -> 5.0" in refused("data.sft.held_out=5")
    moved = sft.with_suffix(".jsonl").rename(tmp_path / "moved.jsonl")
    assert "a key or a file of data.sft or data.rm or data.ppo is not what it was" in refused()
    assert f"data.sft.path: {sft}.jsonl -> {moved}" in refused(f"data.sft={{path: {moved}, held_out: 5}}")
    moved.rename(sft.with_suffix(".jsonl"))
    run_stage("ppo", run_dir, *command)
    assert "finished" in run_stage("ppo", run_dir, *command, "data.sft.held_out=5").stdout  # and is skipped


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ("raise", "ZeroDivisionError: a fault of rank 1 alone"),
        ("die", "died without a message"),
        ("hang", "killed_stage.py:"),
    ],
)
def test_the_rank_that_failed_is_named_and_the_stage_resumes(
    tmp_path: Path, failure: str, reason: str
) -> None:
    command = stage_arguments("sft", tmp_path, "sft.save_steps=1", "deepspeed.timeout_minutes=0.4")
    failed = start([*launcher(2), KILLED_STAGE, failure, *command])
    assert failed.returncode not in (0, 130, 143), failed.stdout
    manifest = json.loads((tmp_path / "sft" / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert "rank 1" in manifest["error"] and reason in manifest["error"]
    assert "error: rank 1" in failed.stdout
    if failure != "raise":
        return  # the other failures resume in the same way
    resumed = start_warm([RUN_STAGE, *command], ranks=2)
    assert resumed.returncode == 0 and "from step-000001" in resumed.stdout


def test_another_base_of_the_same_name_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_folder, base)
    override = f"base.model={base}"
    run_stage("sft", tmp_path / "run", override, "sft.max_steps=1")
    weights = load_file(base / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in weights.items()}, base / "model.safetensors")
    refused = run_stage("rm", tmp_path / "run", override, status=2)
    assert f"the files of {base} are not those that stage sft was trained on" in refused.stdout


def test_every_damaged_file_is_named(separate_run: Path, tmp_path: Path) -> None:
    damaged = list(cases(separate_run, tmp_path, OVERRIDES))
    assert {case.file: case.fault for case in damaged if case.fault} == {}
    assert {(case.state, case.kind) for case in damaged} == {
        *product(("finished",), ("manifest", "record", "adapter")),
        *product(("interrupted",), ("manifest", "record", "checkpoint")),
    }


def test_finished_stage_says_so(separate_run: Path) -> None:
    before = files(separate_run / "rm")
    result = run_stage("rm", separate_run, *OVERRIDES)
    assert "finished" in result.stdout
    assert files(separate_run / "rm") == before


def test_changed_stage_runs_again_and_those_downstream_notice(separate_run: Path, tmp_path: Path) -> None:
    run_dir = copy_upstream(separate_run, "ppo", tmp_path)
    result = run_stage("sft", run_dir, *OVERRIDES, "sft.max_steps=1")
    assert "but these changed: sft.max_steps: 6 -> 1" in result.stdout
    assert rows(run_dir / "sft" / "metrics.jsonl")[-1]["step"] == 1
    result = run_stage("ppo", run_dir, *OVERRIDES, "sft.max_steps=1", status=2)
    assert (
        "stage rm, which was trained on another sft adapter" in result.stdout
        and "--stage rm" in result.stdout
    )


def test_missing_upstream_is_named(separate_run: Path, tmp_path: Path) -> None:
    run_dir = copy_upstream(separate_run, "rm", tmp_path)
    result = run_stage("ppo", run_dir, *OVERRIDES, status=2)
    assert "rm" in result.stdout and "--stage rm" in result.stdout
    assert not (run_dir / "ppo" / "manifest.json").exists()


def test_a_disk_that_takes_no_more_is_told_and_loses_nothing(separate_run: Path, tmp_path: Path) -> None:
    """A limit on file size replaces a full disk. The first checkpoint exceeds it."""
    limited = ["bash", "-c", 'ulimit -f 64 && exec "$@"', "bash"]
    result = start([*limited, sys.executable, RUN_STAGE, *stage_arguments("sft", tmp_path, *OVERRIDES)])
    assert result.returncode == 2 and "Traceback" not in result.stdout, result.stdout
    assert f"error: {tmp_path / 'sft'}: could not be written" in result.stdout
    assert not list((tmp_path / "sft" / "checkpoints").iterdir())
    run_stage("sft", tmp_path, *OVERRIDES)
    assert_same_result(tmp_path / "sft", separate_run / "sft")


def test_best_of_n_and_then_rejection_sampling_fine_tuning(separate_run: Path, tmp_path: Path) -> None:
    """`best` runs after the other stages, and SFT trains on its demonstrations."""
    options = ("best.n=4", "best.rollout={max_new_tokens: 12}", *OVERRIDES)
    result = run_stage("best", separate_run, *options)
    demonstrations = separate_run / "best" / "demonstrations" / "train.jsonl"
    assert "stage best finished" in result.stdout and str(demonstrations) in result.stdout
    manifest = json.loads((separate_run / "best" / "manifest.json").read_text())
    assert manifest["status"] == "finished" and set(manifest["inputs"]) == {"sft", "rm"}
    assert "finished with this configuration" in run_stage("best", separate_run, *options).stdout
    run_stage("sft", tmp_path, f"data.sft.path={demonstrations}", "data.sft.held_out=0", "sft.max_steps=2")
    assert json.loads((tmp_path / "sft" / "manifest.json").read_text())["status"] == "finished"
