"""Suggested commands have the form of the program that the user called."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.run_stage import launcher_of
from pipeline.planning.request import RUN_STAGE
from tests.support.pipeline_runs import request


@pytest.mark.parametrize(
    ("caller", "stage", "expected"),
    [
        ("deepspeed", "sft", "deepspeed launch/run_stage.py --stage rm --run-dir RUN"),
        ("deepspeed", "rm", "deepspeed launch/run_stage.py --stage ppo --run-dir RUN"),
        ("deepspeed", "ppo", "tristage report --run-dir RUN"),
        ("python", "sft", "python launch/run_stage.py --stage rm --run-dir RUN"),
        (
            "torchrun --nproc-per-node 2",
            "sft",
            "torchrun --nproc-per-node 2 launch/run_stage.py --stage rm --run-dir RUN",
        ),
        ("tristage", "sft", "tristage run --from rm --run-dir RUN"),
        ("tristage", "rm", "tristage run --from ppo --run-dir RUN"),
        ("tristage", "ppo", "tristage report --run-dir RUN"),
    ],
)
def test_the_next_command(caller: str, stage, expected: str, tmp_path: Path) -> None:
    assert request(tmp_path, caller=caller).next_command(stage) == expected


def test_a_suggested_stage_can_be_copied_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = request(tmp_path, caller="python").next_command("sft")
    assert said == f"python {RUN_STAGE} --stage rm --run-dir RUN" and RUN_STAGE.is_file()
    monkeypatch.chdir(RUN_STAGE.parent)
    assert request(tmp_path, caller="python").next_command("sft").startswith("python run_stage.py --stage rm")


def test_what_best_has_picked_is_trained_on_in_its_own_run_directory(tmp_path: Path) -> None:
    expected = (
        f"tristage run --from sft --until sft --config {tmp_path}/config.yaml --run-dir {tmp_path}-best "
        f"data.sft.path={tmp_path}/best/demonstrations/train.jsonl"
    )
    assert request(tmp_path, caller="tristage").next_command("best") == expected


@pytest.mark.parametrize(
    ("caller", "expected"),
    [
        ("deepspeed", "deepspeed launch/run_stage.py --stage rm --run-dir RUN --fresh"),
        ("tristage", "tristage run --from rm --until rm --run-dir RUN --fresh"),
    ],
)
def test_a_stage_again(caller: str, expected: str, tmp_path: Path) -> None:
    assert request(tmp_path, caller=caller).command("rm", "--fresh") == expected


def test_best_of_n_is_no_stage_of_tristage_run(tmp_path: Path) -> None:
    expected = "deepspeed launch/run_stage.py --stage best --run-dir RUN"
    assert request(tmp_path, caller="tristage").command("best") == expected


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "python"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "deepspeed"),
        (
            {"RANK": "0", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"},
            "torchrun --nproc-per-node 2",
        ),
    ],
)
def test_a_stage_knows_its_launcher(variables: dict[str, str], expected: str) -> None:
    assert launcher_of(variables) == expected
