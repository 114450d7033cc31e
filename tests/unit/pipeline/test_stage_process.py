"""One stage from plan to manifest, with a recipe that does not train."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.errors import UserError
from configs.schema import STAGES, Experiment, Stage
from pipeline import stage_process
from pipeline.planning import request
from pipeline.planning.plan import StagePlan, plan_stage
from pipeline.planning.request import Request
from pipeline.processes import endings, logs
from pipeline.stage_process import run_stage
from pipeline.state.manifest import Manifest, read_manifest, source_hashes
from pipeline.state.run_directory import RunDirectory
from stages.context import Context, Outcome, Paused
from tests.support.pipeline_runs import single_rank, toy, write_stage

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
Recipe = Callable[[Context], Outcome]


def train_recipe(context: Context) -> Outcome:
    """A recipe that succeeds."""
    context.tracker.log({"loss": 1.0}, 1)
    adapter = context.folder / "adapter"
    adapter.mkdir(exist_ok=True)
    (adapter / "adapter_model.safetensors").write_text("trained")
    return Outcome({"eval_loss_before": 3.0, "eval_loss": 2.0, "steps": 4})


@pytest.fixture
def run(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    """run(recipe) calls run_stage with that recipe and without a process group."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.chdir(tmp_path_factory.mktemp("toy"))  # the toy experiment's relative paths are in it
    shutil.copytree(CONFIGS / "deepspeed", "deepspeed")
    for stage in STAGES:
        Path(f"{stage}.jsonl").touch()
    monkeypatch.setattr(stage_process, "_process_group", single_rank)
    monkeypatch.setattr(logs, "open_logs", lambda folder, rank: folder)

    def call_run_stage(
        recipe: Recipe = train_recipe, stage="sft", config: Experiment | None = None, **options
    ) -> int:
        monkeypatch.setattr(stage_process, "_recipe", lambda _: recipe)
        return run_stage(Request(config or toy(), RunDirectory(tmp_path), **options), stage)

    return call_run_stage


def manifest_of(run_dir: Path, stage: str = "sft") -> Manifest:
    manifest = read_manifest(run_dir / stage / "manifest.json")
    assert manifest is not None
    return manifest


def test_finished_stage_is_recorded(tmp_path: Path, run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments="sft.learning_rate=1e-4") == 0
    manifest = manifest_of(tmp_path)
    assert manifest.status == "finished"
    assert manifest.metrics["eval_loss"] == 2.0 and manifest.metrics["wall_seconds"] >= 0
    assert manifest.output is not None and list(manifest.output.files) == ["adapter_model.safetensors"]
    assert manifest.process is not None and manifest.process.pid == os.getpid()
    assert Experiment.model_validate(yaml.safe_load((tmp_path / "config.yaml").read_text())) == toy()
    stdout = capsys.readouterr().out
    assert "held-out loss after" in stdout
    assert re.search(r"next: deepspeed \S*launch/run_stage.py --stage rm sft.learning_rate=1e-4", stdout)


def test_manifest_says_running_while_it_runs(tmp_path: Path, run) -> None:
    statuses: list[str] = []

    def record_status(context: Context) -> Outcome:
        statuses.append(manifest_of(tmp_path).status)
        return train_recipe(context)

    run(record_status)
    assert statuses == ["running"]


def test_second_run_does_nothing(run, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    capsys.readouterr()
    assert run(lambda context: pytest.fail("must not run")) == 0
    assert "finished" in capsys.readouterr().out


def test_an_error_leaves_no_secret(
    tmp_path: Path, run, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SCORER_TOKEN", "a-secret-of-ours")

    def leak(context: Context) -> Outcome:
        raise RuntimeError(f"bad header {os.environ['SCORER_TOKEN']} at https://me:pw123@host/\x1b[31m")

    assert run(leak) == 1
    error = manifest_of(tmp_path).error
    assert error == "RuntimeError: bad header [redacted] at https://[redacted]@host/␛[31m"


def test_force_keeps_the_old_folder(tmp_path: Path, run) -> None:
    run()
    assert run(force=True) == 0
    assert manifest_of(tmp_path).status == "finished"
    assert (tmp_path / "sft.old-1/adapter/adapter_model.safetensors").exists()


def test_inputs_are_handed_over(tmp_path: Path, run) -> None:
    write_stage(tmp_path, "sft")
    contexts: list[Context] = []

    def record_context(context: Context) -> Outcome:
        contexts.append(context)
        return train_recipe(context)

    assert run(record_context, stage="rm") == 0
    assert contexts[0].inputs == {"sft": tmp_path / "sft/adapter"}
    assert not contexts[0].resume
    expected = manifest_of(tmp_path).output
    assert expected is not None
    assert manifest_of(tmp_path, "rm").inputs["sft"].sha256 == expected.sha256


def test_users_error_is_a_message_and_status_2(
    tmp_path: Path, run, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(context: Context) -> Outcome:
        raise UserError("rows.jsonl: row 3: no prompt")

    assert run(refuse) == 2
    stderr = capsys.readouterr().err
    assert "error: rows.jsonl: row 3: no prompt" in stderr and "Traceback" not in stderr
    manifest = manifest_of(tmp_path)
    assert manifest.status == "failed"
    assert manifest.error == "UserError: rows.jsonl: row 3: no prompt"


def test_programs_error_is_a_traceback_and_status_1(
    tmp_path: Path, run, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(context: Context) -> Outcome:
        raise ZeroDivisionError("by zero")

    assert run(fail) == 1
    assert "Traceback" in capsys.readouterr().err
    assert manifest_of(tmp_path).status == "failed"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_result_that_is_not_finite_is_a_failure(
    tmp_path: Path, run, value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoilt(context: Context) -> Outcome:
        return Outcome(train_recipe(context).metrics | {"kl": value, "kl_low": value, "kl_high": 1.0})

    assert run(spoilt) == 2
    assert "error: stage sft: kl of the result is not a finite number" in capsys.readouterr().err
    assert manifest_of(tmp_path).status == "failed"
    assert run(stage="rm") == 2, "the next stage does not start"


def test_a_failure_before_the_first_step_restores_the_finished_result(
    tmp_path: Path, run, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(context: Context) -> Outcome:
        context.tracker.log({"eval/loss": 3.0}, 0)
        context.tracker.samples([{"prompt": "p", "response": "r"}], 0)
        raise UserError("rows.jsonl: row 3: no prompt")

    assert run() == 0
    config, manifest = (tmp_path / "config.yaml").read_text(), manifest_of(tmp_path)
    assert run(refuse, config=toy(sft__epochs=9)) == 2
    assert "its earlier result is back in place" in capsys.readouterr().err
    assert manifest_of(tmp_path) == manifest and (tmp_path / "config.yaml").read_text() == config
    failed = json.loads((tmp_path / "sft.failed-1" / "manifest.json").read_text())
    assert failed["status"] == "failed" and not (tmp_path / "sft.old-1").exists()
    assert run(pytest.fail) == 0, "with the first configuration, the stage is finished"


def test_a_failure_after_the_first_step_stays_in_place(tmp_path: Path, run) -> None:
    def fail(context: Context) -> Outcome:
        context.tracker.log({"loss": 9.0}, 1)
        raise ZeroDivisionError

    assert run() == 0
    assert run(fail, config=toy(sft__epochs=9)) == 1
    assert manifest_of(tmp_path).status == "failed" and (tmp_path / "sft.old-1").is_dir()


def test_stage_without_adapter_is_a_failure(tmp_path: Path, run) -> None:
    assert run(lambda context: Outcome({})) == 1
    assert manifest_of(tmp_path).status == "failed"


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_interrupts_and_the_next_run_resumes(tmp_path: Path, run, signum, status) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def stop(context: Context) -> Outcome:
        context.tracker.log({"loss": 9.0}, 1)
        os.kill(os.getpid(), signum)
        signal.pause()
        raise AssertionError("not reached")

    assert run(stop) == status
    assert manifest_of(tmp_path).status == "interrupted"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers

    def resumed(context: Context) -> Outcome:
        assert context.resume
        return train_recipe(context)

    assert run(resumed) == 0
    lines = (tmp_path / "sft/metrics.jsonl").read_text().splitlines()
    assert lines == ['{"step": 1, "loss": 1.0}'], "without a checkpoint, nothing of the first attempt counts"


def test_second_signal_does_not_disturb_the_manifest(
    tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Manifest.write

    def slow(self: Manifest, path: Path) -> None:
        if self.status == "interrupted":
            os.kill(os.getpid(), signal.SIGTERM)
        write(self, path)

    monkeypatch.setattr(Manifest, "write", slow)

    def stop(context: Context) -> Outcome:
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
        raise AssertionError("not reached")

    assert run(stop) == 130
    assert manifest_of(tmp_path).status == "interrupted"


@pytest.mark.parametrize("step", ["explained", "cause", "exit_code"])
def test_the_launchers_signal_does_not_hide_the_failure_that_it_follows(
    tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    call = getattr(endings, step)

    def signalled(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return call(*arguments)

    def fail(context: Context) -> Outcome:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(endings, step, signalled)
    assert run(fail) == 1
    assert manifest_of(tmp_path).error == "ZeroDivisionError: by zero"


def test_a_recipe_may_finish_its_step_first(tmp_path: Path, run, capsys: pytest.CaptureFixture[str]) -> None:
    def pause(context: Context) -> Outcome:
        with context.signals_deferred() as signal_noted:
            os.kill(os.getpid(), signal.SIGTERM)
            raise Paused(signal_noted(), 7, 20)

    assert run(pause) == 143
    manifest = manifest_of(tmp_path)
    assert (manifest.status, manifest.error) == (
        "interrupted",
        "Paused: SIGTERM after step 7 of 20, which is in a checkpoint",
    )
    assert "interrupted by SIGTERM after step 7 of 20" in capsys.readouterr().err


def test_resume_keeps_the_run_id_and_adds_up_time(tmp_path: Path, run) -> None:
    def fail(context: Context) -> Outcome:
        raise ZeroDivisionError

    run(fail)
    first = manifest_of(tmp_path)
    first.model_copy(update={"wall_seconds": 100.0}).write(tmp_path / "sft/manifest.json")
    run()
    second = manifest_of(tmp_path)
    assert second.run_id == first.run_id
    assert second.started == first.started
    assert 100 <= second.metrics["wall_seconds"] < 200


def test_a_clock_that_goes_backwards_loses_nothing(tmp_path: Path, run) -> None:
    """The stage was killed on a machine whose clock was a year ahead."""
    killed = write_stage(tmp_path, "sft", "running", checkpoint=3)
    next_year = killed.started + timedelta(days=365)
    dates = {"started": next_year, "attempt_started": next_year, "wall_seconds": 100.0}
    killed.model_copy(update=dates).write(tmp_path / "sft/manifest.json")
    assert run() == 0
    manifest = manifest_of(tmp_path)
    assert manifest.status == "finished" and 100 <= manifest.metrics["wall_seconds"] < 200
    assert run() == 0 and manifest_of(tmp_path) == manifest, "finished, whatever the clock says"


def test_blocked_stage_touches_nothing(tmp_path: Path, run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(stage="rm") == 2
    assert "needs stage sft" in capsys.readouterr().err
    assert not (tmp_path / "rm").exists()


def test_a_stage_is_planned_once_and_its_sources_are_hashed_once(
    tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for upstream in ("sft", "rm"):
        write_stage(tmp_path, upstream)
    planned: list[Stage] = []
    hashed: list[Stage] = []

    def record_plan(request: Request, stage: Stage, **state: Any) -> StagePlan:
        planned.append(stage)
        return plan_stage(request, stage, **state)

    def record_hash(config: Experiment, stage: Stage, **how: Any) -> dict[str, str]:
        hashed.append(stage)
        return source_hashes(config, stage, **how)

    monkeypatch.setattr(stage_process, "plan_stage", record_plan)
    monkeypatch.setattr(request, "source_hashes", record_hash)
    assert run(stage="ppo") == 0
    assert planned == ["ppo"]
    assert sorted(hashed) == ["ppo", "rm", "sft"], "PPO compares the sources of its upstream stages, too"


def test_a_missing_file_is_refused_before_anything_changes(
    tmp_path: Path, run, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("sft.jsonl").unlink()
    assert run() == 2
    assert "data.sft.path: sft.jsonl: there is no such file" in capsys.readouterr().err
    assert not (tmp_path / "sft").exists()


def test_indivisible_batch_is_refused_before_anything_changes(
    tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    assert run() == 2
    assert "sft.batch_size: 64 cannot be shared equally by 3 ranks" in capsys.readouterr().err
    assert not (tmp_path / "sft").exists()
