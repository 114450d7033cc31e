"""Stages that SIGINT or SIGTERM interrupts: no step is lost or repeated, and results are unchanged."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from configs.errors import UserError
from configs.load import load_experiment
from configs.schema import Stage
from stages import rm, sft
from stages.context import Context, Paused
from stages.distributed.ranks import Ranks
from stages.feedback.reward_ensemble import RewardEnsemble
from tests.integration.test_ppo_start import Recorder
from tests.support.runs import (
    KILLED_STAGE,
    ROOT,
    RUN_STAGE,
    TINY,
    assert_same_result,
    checkpoint_tensors,
    copy_upstream,
    environment,
    files,
    launcher,
    rows,
    run_stage,
    stage_arguments,
    start,
    start_warm,
    untimed,
)

OVERRIDES = ("adapter.dropout=0.1", "sft.save_steps=4", "ppo.save_steps=3")


class SignalAtStep:
    """Defers signals as the pipeline does; SIGTERM comes during step number `step`, none for 0."""

    def __init__(self, step: int) -> None:
        self.step, self.polls = step, 0

    @contextmanager
    def __call__(self) -> Iterator[Callable[[], int]]:
        yield self.poll

    def poll(self) -> int:
        self.polls += 1
        return signal.SIGTERM if self.polls == self.step else 0


@pytest.fixture(autouse=True)
def local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")  # DeepSpeed asks for it


def checkpoints(stage: Path) -> list[str]:
    return sorted(path.name for path in (stage / "checkpoints").glob("step-*"))


def train_sft(
    ranks: Ranks, folder: Path, *overrides: str, step: int = 0, resume: bool = False
) -> list[Mapping[str, float]]:
    """Run SFT until it ends, or pauses `step` steps from here; returns what it logged."""
    folder.mkdir(exist_ok=True)
    tracker = Recorder()
    context = Context(
        load_experiment(TINY, [*OVERRIDES, *overrides]),
        *("sft", folder, {}, tracker, resume, ranks),
        signals_deferred=SignalAtStep(step),
    )
    if step:
        with pytest.raises(Paused):
            sft.run(context)
    else:
        sft.run(context)
    return [untimed(row) for row in tracker.metrics]


@pytest.mark.parametrize("step", [1, 3, 4, 6], ids=["first", "evaluated", "saved", "last"])
def test_every_step_is_one_to_pause_at(step: int, ranks: Ranks, tmp_path: Path) -> None:
    """Step 3 of 6 is evaluated, and step 4 is saved in any case. Two checkpoints are kept."""
    uninterrupted = train_sft(ranks, tmp_path / "whole")
    paused = train_sft(ranks, tmp_path / "paused", step=step)
    assert checkpoints(tmp_path / "paused")[-1] == f"step-{step:06d}"
    resumed = train_sft(ranks, tmp_path / "paused", resume=True)
    assert paused + resumed == uninterrupted, "nothing is logged twice, nothing is left out"
    assert files(tmp_path / "paused" / "adapter") == files(tmp_path / "whole" / "adapter")
    for folder in ("paused", "whole"):
        assert checkpoints(tmp_path / folder) == ["step-000004", "step-000006"]


def test_pauses_take_the_place_of_older_checkpoints_only(ranks: Ranks, tmp_path: Path) -> None:
    kept = []
    for resume in (False, True, True):
        train_sft(ranks, tmp_path, "sft.keep_checkpoints=2", step=1, resume=resume)
        kept.append(checkpoints(tmp_path))
    assert kept == [
        ["step-000001"],
        ["step-000001", "step-000002"],
        ["step-000002", "step-000003"],
    ]


LOSSES = {0: 5.0, 2: 1.0, 4: 2.0, 6: 3.0}  # on held-out data by step; the model overfits after step 2


@pytest.mark.parametrize("stage", ["sft", "rm"])
def test_best_checkpoint_is_kept_and_can_be_the_result(
    stage: Stage,
    ranks: Ranks,
    adapters: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    recipe = {"sft": sft, "rm": rm}[stage]
    trainer = {"sft": sft.SftTrainer, "rm": RewardEnsemble}[stage]
    inputs = {"rm": {"sft": adapters["sft"]}}.get(stage, {})
    options = [f"{stage}.{option}" for option in ("eval_steps=2", "save_steps=2", "max_steps=6", "epochs=99")]

    def train(folder: Path, *overrides: str) -> dict[str, float]:
        evaluations = iter(LOSSES.values())
        monkeypatch.setattr(trainer, "evaluate", lambda *_: {"loss": next(evaluations)})
        config = load_experiment(TINY, [*options, f"{stage}.keep_checkpoints=1", *overrides])
        folder.mkdir()
        return recipe.run(Context(config, stage, folder, inputs, Recorder(), False, ranks)).metrics

    last = train(tmp_path / "last")
    best = train(tmp_path / "best", f"{stage}.use_best=true")
    assert (last["eval_loss"], best["eval_loss"]) == (3.0, 1.0)
    for folder in ("last", "best"):
        assert checkpoints(tmp_path / folder) == ["step-000002", "step-000006"]
    weights = [load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("best", "last")]
    saved = checkpoint_tensors(tmp_path / "best", 2)
    role = {"sft": "policy", "rm": "reward"}[stage]
    for name, tensor in weights[0].items():
        own_name = name.replace("base_model.model.", "causal.").replace(".weight", f".{role}.weight")
        assert torch.equal(tensor, saved[own_name]), name
    assert any(not torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_best_checkpoint_needs_an_evaluation(
    ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("sft.use_best=true", "sft.eval_steps=4")
    losses = chain([3.0], repeat(math.nan))
    monkeypatch.setattr(sft.SftTrainer, "evaluate", lambda *_: {"loss": next(losses)})
    with pytest.raises(UserError, match=r"sft\.use_best: no held-out loss was a finite number"):
        train_sft(ranks, tmp_path / "nan", *options)
    monkeypatch.setattr(sft.SftTrainer, "evaluate", lambda *_: {})  # all held-out examples were dropped
    with pytest.raises(UserError, match=r"sft\.use_best: nothing is held out"):
        train_sft(ranks, tmp_path / "none", *options)


def run_under_deepspeed(ranks: int, stage: Stage, run_dir: Path) -> str:
    """Run a stage under `deepspeed`, which must succeed; returns its output."""
    result = start([*launcher(ranks), RUN_STAGE, *stage_arguments(stage, run_dir, *OVERRIDES)])
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the SFT policy and reward model for PPO."""
    run_dir = tmp_path_factory.mktemp("upstream")
    run_stage("sft", run_dir, *OVERRIDES)
    run_stage("rm", run_dir, *OVERRIDES)
    return run_dir


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("ranks", "stage", "when"),
    [(2, "sft", "SIGTERM@3@rank"), (1, "ppo", "SIGINT@2")],
)
def test_interrupted_under_deepspeed_and_resumed_is_as_if_never_interrupted(
    upstream: Path, tmp_path: Path, ranks: int, stage: Stage, when: str
) -> None:
    reference_dir, interrupted_dir = (
        copy_upstream(upstream, stage, tmp_path / name) for name in ("whole", "ours")
    )
    undisturbed = start_warm([RUN_STAGE, *stage_arguments(stage, reference_dir, *OVERRIDES)], ranks)
    assert undisturbed.returncode == 0, undisturbed.stdout

    interrupted = start(
        [
            *launcher(ranks),
            *(KILLED_STAGE, when),
            *stage_arguments(stage, interrupted_dir, *OVERRIDES, "tracking.wandb=offline"),
        ]
    )
    name, step, *rank = when.split("@")
    signum = signal.Signals[name]
    # A signal to all processes also kills the `deepspeed` command, unless the process that it
    # waits for ends first with status 1.
    assert interrupted.returncode in ([128 + signum] if rank else [-signum, 1]), interrupted.stdout
    message = f"interrupted by {name} after step {step} of "
    assert interrupted.stdout.count(message) == 1 and "the same command resumes" in interrupted.stdout
    assert "interrupted: ends after the current step" in interrupted.stdout
    assert "W&B" not in interrupted.stdout, "the launcher ends W&B's process, which is no news"
    tracebacks = interrupted.stdout.count("Traceback")
    assert tracebacks == interrupted.stdout.count('bin/deepspeed", line'), "only the launcher's own"
    manifest = json.loads((interrupted_dir / stage / "manifest.json").read_text())
    assert manifest["status"] == "interrupted" and f"after step {step} of" in manifest["error"]
    assert checkpoints(interrupted_dir / stage) == [f"step-{int(step):06d}"]
    before = (interrupted_dir / stage / "metrics.jsonl").read_bytes()

    assert f"resumes from step-{int(step):06d}" in run_under_deepspeed(ranks, stage, interrupted_dir)
    assert_same_result(interrupted_dir / stage, reference_dir / stage)
    assert (interrupted_dir / stage / "metrics.jsonl").read_bytes().startswith(before), (
        "no step was taken again"
    )


def test_tristage_run_waits_for_the_step_and_stops_there(tmp_path: Path) -> None:
    overrides = ["sft.max_steps=5000", "sft.epochs=5000", "sft.save_steps=5000", "sft.eval_steps=null"]
    options = ["--config", str(TINY), "--run-dir", str(tmp_path), *overrides]
    command = [sys.executable, "-m", "launch.cli", "run", *options]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "sft" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and len(rows(metrics)) > 3) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 143, stderr
    last = rows(metrics)[-1]["step"]
    assert f"interrupted by SIGTERM after step {last} of 5000" in stderr
    assert checkpoints(tmp_path / "sft") == [f"step-{last:06d}"]
    assert not (tmp_path / "rm").exists()
