"""Links in a run directory, which a writer would follow out of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from configs.load import dump_experiment, load_experiment
from tests.contract.bad_inputs.entry import check_message, experiment, files, stage_run, tristage
from tests.support.pipeline_runs import write_stage

LINKS = (
    "sft", "sft/logs", "sft/logs/rank0.log", "sft/logs/rank0.stack", "sft/logs/rank1.ended", "sft/wandb",
    "sft/metrics.jsonl", "sft/samples.jsonl", "sft/checkpoints", "sft/checkpoints/step-000002",
    "sft/checkpoints/step-000001/seal.json", "sft/adapter", "sft/adapter/adapter_config.json",
    "sft/wandb/tmp", "sft/manifest.json", "sft/.metrics.jsonl.x.partial",
)  # fmt: skip


def plant(path: Path, outside: Path, kind: str) -> None:
    """Put a link, or a named pipe, in place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(outside / {"file": "file", "folder": "folder", "dangling": "none"}[kind])


@pytest.mark.parametrize("kind", ["file", "folder", "dangling", "pipe"])
@pytest.mark.parametrize("name", LINKS)
def test_a_stage_writes_through_no_link(name, kind, tmp_path):
    file, outside, run = experiment(tmp_path), tmp_path / "outside", tmp_path / "run"
    (outside / "folder").mkdir(parents=True)
    (outside / "folder/manifest.json").write_text("precious")
    (outside / "file").write_text("precious")
    write_stage(run, "sft", "failed", config=load_experiment(file), checkpoint=1)
    plant(run / name, outside, kind)
    before = files(outside)
    status, said = stage_run(file, run, "sft")
    assert status == 2 and files(outside) == before, said
    check_message(said, f"{run}/sft")
    status, out, err = tristage("run", "--config", file, "--run-dir", run)
    assert status == 2 and files(outside) == before
    check_message(out + err, f"{run}/sft")


@pytest.mark.parametrize("name", ["sft/samples.jsonl", "sft/checkpoints/step-000001"])
def test_plan_names_the_link_and_a_new_folder_has_none(name, tmp_path):
    file, run = experiment(tmp_path), tmp_path / "run"
    write_stage(run, "sft", "failed", config=load_experiment(file), checkpoint=1)
    plant(run / name, tmp_path, "dangling")
    status, out, _ = tristage("plan", "--config", file, "--run-dir", run, "--until", "sft")
    assert status == 2
    check_message(
        out.partition("per optimizer")[0], f"blocked  {run}/{name} is a link", "Only the run directory"
    )
    status, out, _ = tristage("plan", "--config", file, "--run-dir", run, "--until", "sft", "--fresh")
    assert status == 0 and "the old folder is kept as" in out


def test_links_that_wandb_makes_and_a_run_directory_elsewhere_are_fine(tmp_path):
    file, run = experiment(tmp_path), tmp_path / "run"
    (tmp_path / "big-disk").mkdir()
    run.symlink_to("big-disk")
    write_stage(run, "sft", "failed", config=load_experiment(file), checkpoint=1)
    (run / "sft/wandb/offline-run-1/logs").mkdir(parents=True)
    (run / "sft/wandb/latest-run").symlink_to("offline-run-1")
    (run / "sft/wandb/debug.log").symlink_to("offline-run-1/logs/debug.log")
    (run / "sft/wandb/offline-run-1/logs/debug-core.log").symlink_to("/root/.cache/wandb/core.log")
    status, out, _ = tristage("plan", "--config", file, "--run-dir", run, "--until", "sft")
    assert status == 0 and "resume" in out


@pytest.mark.parametrize("name", [".sft.lock", "report", "report/gold.png", "report/index.html"])
def test_locks_and_reports_follow_no_link(name, sft_run, tmp_path):
    file, config, run = sft_run
    (run / "config.yaml").write_text(dump_experiment(config))
    plant(run / name, tmp_path, "dangling")
    words = ("--config", file, "--run-dir", run)
    status, _, err = tristage("plan", *words) if "lock" in name else tristage("report", *words)
    assert not (tmp_path / "none").exists()
    assert "lock" in name or status == 2
    check_message(err, *([] if "lock" in name else [f"{run}/{name} is a link"]))
    assert stage_run(file, run, "sft")[0] in (0, 2) and not (tmp_path / "none").exists()
