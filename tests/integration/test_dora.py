"""DoRA and LoftQ in all stages: the KL starts at 0, stages resume, ranks agree, exports are exact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.load import load_experiment
from pipeline.planning.start_adapters import adapter_fault
from tests.integration.test_deepspeed import RECIPES, assert_same_figures
from tests.support.runs import (
    KILLED_STAGE,
    ROOT,
    TINY,
    assert_same_result,
    copy_upstream,
    metrics,
    rows,
    run_stage,
    stage_arguments,
    start,
    start_warm,
)

BOTH = ("adapter.dora=true", "adapter.init=loftq")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All stages; SFT and the reward model share the base, so the second starts from the first."""
    run = tmp_path_factory.mktemp("dora")
    for stage in ("sft", "rm", "ppo"):
        run_stage(stage, run, *BOTH)
    return run


def test_every_stage_trains_the_lengths(run) -> None:
    for stage in ("sft", "rm", "ppo"):
        assert json.loads((run / stage / "adapter/adapter_config.json").read_text())["use_dora"] is True
    log = (run / "sft/logs/rank0.log").read_text()
    assert "adapter.init: loftq: the new adapter takes up " in log


def test_the_kl_starts_at_zero(run) -> None:
    """Policy and reference are both the SFT adapter, LoftQ's part included."""
    first = next(row for row in rows(run / "ppo/metrics.jsonl") if "objective/kl" in row)
    assert first["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert first["policy/approxkl_avg"] >= 0


def test_sft_starts_nearer_to_the_unquantized_base(run, trained_run, tmp_path) -> None:
    """Its loss before the first step lies between that of the NF4 base and that of the base in fp32."""
    run_stage("sft", tmp_path, "sft.max_steps=0", "base.quantization=none")
    whole, loftq, nf4 = (
        metrics(path / "sft/manifest.json")["eval_loss_before"] for path in (tmp_path, run, trained_run)
    )
    assert abs(loftq - whole) < abs(nf4 - whole)


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_killed_it_resumes_bit_for_bit(stage, run, tmp_path) -> None:
    copy_upstream(run, stage, tmp_path)
    result = start_warm([KILLED_STAGE, "2", *stage_arguments(stage, tmp_path, *BOTH)])
    assert result.returncode == -9, result.stdout
    run_stage(stage, tmp_path, *BOTH)
    assert_same_result(tmp_path / stage, run / stage)


def test_the_merged_export_is_exact(run, tmp_path) -> None:
    words = ("tristage", "export", "--run-dir", run, "--stage", "ppo", "--out", tmp_path / "merged")
    result = start(words)
    assert result.returncode == 0, result.stdout
    figures = json.loads((tmp_path / "merged/export.json").read_text())["figures"]
    assert figures["largest"] < 1e-3 and figures["tokens"] > 0


def test_another_adapter_section_is_refused(run) -> None:
    fault = adapter_fault(load_experiment(TINY), "sft", run / "sft/adapter")
    assert (
        fault == "its use_dora is true, and all stages share one adapter section. Set adapter.dora to true."
    )
    assert adapter_fault(load_experiment(TINY, ["adapter.dora=true"]), "sft", run / "sft/adapter") is None


def test_an_adapter_is_given_with_its_lengths(run, tmp_path) -> None:
    """`sft.from` a DoRA adapter: before any step, its loss is the one that it ended with."""
    given = f"sft.from={run / 'sft/adapter'}"
    output = run_stage("sft", tmp_path, *BOTH, given, "sft.max_steps=0").stdout
    assert "adapter.target_modules and adapter.init are not used" in output
    ended, started = (metrics(path / "sft/manifest.json")["eval_loss"] for path in (run, tmp_path))
    assert started == pytest.approx(ended, abs=1e-6)


def test_zero3_is_refused(tmp_path) -> None:
    zero3 = "deepspeed.config=configs/deepspeed/zero3.json"
    output = run_stage("sft", tmp_path / "run", "adapter.dora=true", zero3, status=2).stdout
    assert "adapter.dora: does not train under ZeRO 3" in output
    assert not (tmp_path / "run" / "sft").exists()


@pytest.mark.distributed
def test_two_ranks_under_zero2_change_nothing(tmp_path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, number, ranks in ((one, 0, 1), (two, 2, 2)):
        folder.mkdir()
        options = ROOT / "configs" / "deepspeed" / f"zero{number}.json"
        result = start_warm([RECIPES, one, folder, options, "go", *BOTH], ranks=ranks)
        assert result.returncode == 0, result.stdout
    assert_same_figures(two, one)
