"""Stage rm under each option of `rm.loss`: it trains, on two ranks alike, and resumes as if never killed."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support.runs import (
    KILLED_STAGE,
    RUN_STAGE,
    assert_same_result,
    copy_upstream,
    metrics,
    rows,
    run_stage,
    stage_arguments,
    start_warm,
)

WORDS = ("glad", "tired", "ready", "late", "proud", "sorry", "hungry", "lost")
LOSSES = {
    "default": "{}",
    "half ties, margins, center": "{ties: half, margin: scores, margin_scale: 0.5, center: 0.05}",
    "label smoothing": "{label_smoothing: 0.2}",
    "plackett-luce": "{kind: plackett_luce}",
    "plackett-luce, center": "{kind: plackett_luce, center: 0.05}",
}
OTHERS = [name for name in LOSSES if name != "default"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Rankings of two to four answers with scores; the middle two of four tie."""
    scores = ([4, 2, 2, 1], [3, 1], [5, 4, 0])
    lines = []
    for number in range(32):
        own = scores[number % 3]
        word = WORDS[number % len(WORDS)]
        answers = [f"I am {word} too, {n} of {number}" for n in range(len(own))]
        lines.append({"prompt": f"Are you {word}, {number}?", "completions": answers, "scores": own})
    file = tmp_path_factory.mktemp("data") / "scored.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"data.rm={{path: {file}, held_out: 8}}"


@pytest.fixture(scope="module")
def runs(
    trained_run: Path, data: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, str]]:
    """Of each loss, a run directory with its reward model, and what the stage said."""
    results = {}
    for name, loss in LOSSES.items():
        run_dir = copy_upstream(trained_run, "rm", tmp_path_factory.mktemp("run") / "run")
        results[name] = run_dir, run_stage("rm", run_dir, data, f"rm.loss={loss}").stdout
    return results


@pytest.mark.parametrize("name", OTHERS)
def test_it_trains_another_reward_model(name: str, runs: dict[str, tuple[Path, str]]) -> None:
    folder, plain = runs[name][0] / "rm", runs["default"][0] / "rm"
    steps = [row for row in rows(folder / "metrics.jsonl") if "learning_rate" in row]
    assert len(steps) == 4 and all(row["grad_norm"] > 0 for row in steps)
    figures = metrics(folder / "manifest.json")
    assert (
        figures["eval_loss_n"] == 8 and figures["eval_loss"] != metrics(plain / "manifest.json")["eval_loss"]
    )
    weights, others = (load_file(path / "adapter" / "adapter_model.safetensors") for path in (folder, plain))
    assert all((weights[key] != others[key]).any() for key in weights)


def test_ties_that_count_are_told(runs: dict[str, tuple[Path, str]]) -> None:
    assert "rm.loss.ties: half" in runs["half ties, margins, center"][1]
    assert not any("rm.loss.ties" in runs[name][1] for name in LOSSES if "ties" not in name)


@pytest.mark.parametrize("name", OTHERS)
def test_killed_and_resumed_is_as_if_never_killed(
    name: str, runs: dict[str, tuple[Path, str]], trained_run: Path, data: str, tmp_path: Path
) -> None:
    run_dir = copy_upstream(trained_run, "rm", tmp_path / "run")
    options = data, f"rm.loss={LOSSES[name]}"
    killed = start_warm([KILLED_STAGE, "3", *stage_arguments("rm", run_dir, *options)])
    assert killed.returncode == -signal.SIGKILL, killed.stdout
    assert "resumes from step-000002" in run_stage("rm", run_dir, *options).stdout
    assert_same_result(run_dir / "rm", runs[name][0] / "rm")


@pytest.mark.distributed
@pytest.mark.parametrize("name", OTHERS)
def test_two_ranks_and_micro_batches_give_the_same(
    name: str, runs: dict[str, tuple[Path, str]], trained_run: Path, data: str, tmp_path: Path
) -> None:
    run_dir = copy_upstream(trained_run, "rm", tmp_path / "run")
    options = data, f"rm.loss={LOSSES[name]}", "rm.micro_batch_size=4"
    result = start_warm([RUN_STAGE, *stage_arguments("rm", run_dir, *options)], ranks=2)
    assert result.returncode == 0, result.stdout
    actual, expected = (rows(path / "rm" / "metrics.jsonl") for path in (run_dir, runs[name][0]))
    assert len(actual) == len(expected)
    for row, expected_row in zip(actual, expected, strict=True):
        assert row == pytest.approx(expected_row, rel=1e-4, abs=1e-5), f"step {row['step']}"


@pytest.mark.distributed
def test_two_sharded_ranks_that_pack_give_the_same(trained_run: Path, tmp_path: Path) -> None:
    """One pair in four is long, and short ones share a row."""
    lines = []
    for number in range(32):
        answer = " ".join([f"I am {WORDS[number % len(WORDS)]}, {number}."] * (1 if number % 4 else 8))
        lines.append({"prompt": f"Are you, {number}?", "chosen": answer, "rejected": f"No. {answer}"})
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = f"data.rm={{path: {file}, held_out: 8}}", "rm.batch_size=8"
    plain, packed = (copy_upstream(trained_run, "rm", tmp_path / name) for name in ("plain", "packed"))
    run_stage("rm", plain, *data)
    options = *data, "rm.packing=true", "deepspeed.config=configs/deepspeed/zero3.json"
    result = start_warm([RUN_STAGE, *stage_arguments("rm", packed, *options)], ranks=2)
    assert result.returncode == 0, result.stdout
    actual, expected = (rows(run_dir / "rm" / "metrics.jsonl") for run_dir in (packed, plain))
    for row, expected_row in zip(actual, expected, strict=True):
        assert row == pytest.approx(expected_row, rel=1e-4, abs=1e-5), f"step {row['step']}"
    figures = json.loads((packed / "rm" / "manifest.json").read_text())["metrics"]
    assert figures["padding"] < 0.7 * figures["padding_plain"]
    assert "finished with this configuration" in run_stage("rm", packed, *data, "rm.packing=false").stdout


def test_another_loss_retrains(runs: dict[str, tuple[Path, str]], data: str) -> None:
    run_dir, loss = runs["plackett-luce"][0], "rm.loss.kind=plackett_luce"
    assert "finished with this configuration" in run_stage("rm", run_dir, data, loss).stdout
    said = run_stage("rm", run_dir, data, loss, "rm.loss.center=0.01").stdout
    assert "finished, but these changed: rm.loss.center: 0.0 -> 0.01" in said
