"""What `tristage doctor` finds, on machines made up for it."""

from __future__ import annotations

import os
import shutil
import time
from collections import namedtuple

import pytest
import requests
import torch

from configs.load import load_experiment
from launch import trials
from pipeline import doctor
from pipeline.doctor import Finding
from pipeline.planning.batches import check_batches
from pipeline.planning.request import RUN_STAGE
from tests.contract.bad_inputs.entry import tristage

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*_args, **_options):
        raise requests.ConnectionError("unreachable")

    monkeypatch.setattr(requests, "head", refuse)


def test_a_machine_offline_has_no_problem(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(doctor, "FULL_DISK", 0)
    status, stdout, stderr = tristage("doctor")
    assert (status, stderr) == (0, "")
    lines = stdout.splitlines()
    assert all(line.split()[0] in ("ok", "note") for line in lines[:-1])
    assert "note     model hub: https://huggingface.co does not answer (ConnectionError)" in stdout
    assert f"torch {torch.__version__}" in lines[0]


def test_a_problem_is_status_1(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**41, 0, 2**29))
    status, stdout, _ = tristage("doctor")
    assert status == 1
    assert "problem  disk for runs: 0.5 GiB free in " in stdout


def test_an_old_lock_does_not_stop_a_run(tmp_path):
    (tmp_path / "py311_cpu/deepspeed_shm_comm").mkdir(parents=True)
    lock = tmp_path / "py311_cpu/deepspeed_shm_comm/lock"
    lock.touch()
    os.utime(lock, (time.time() - 7200,) * 2)
    (found,) = doctor.extension_locks(tmp_path)
    assert found.level == "note"
    assert found.text.startswith(f"{lock} is 2:00:0") and "No stage waits for it" in found.text


def test_a_fresh_lock_is_a_build_in_progress(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one/lock").touch()
    assert [finding.level for finding in doctor.extension_locks(tmp_path)] == ["note"]
    assert [finding.level for finding in doctor.extension_locks(tmp_path / "none")] == ["ok"]


def test_requirements_that_are_not_met_are_named(monkeypatch):
    lines = ["torch>=99", "no-such-library>=1", "typer>=0.1", "pytest<1; extra == 'dev'"]
    monkeypatch.setattr(doctor, "requires", lambda name: lines)
    found = doctor.versions()
    assert found.level == "problem"
    assert f"torch is {torch.__version__}, not >=99; no-such-library is missing. " in found.text
    assert "typer" not in found.text and "pytest" not in found.text


@pytest.mark.parametrize(("there", "level"), [(True, "ok"), (False, "note")])
def test_a_missing_compiler_does_not_stop_a_run(there, level, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name, path: f"/bin/{name}" if there else None)
    monkeypatch.delenv("CXX", raising=False)
    assert doctor.compiler().level == level


def test_accelerators(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.Path, "glob", lambda *_: iter(()))
    found = doctor.accelerators()
    assert found.level == "note" and "no GPU: runs use the CPU" in found.text
    monkeypatch.setattr(doctor.Path, "glob", lambda *_: iter(["/dev/nvidia0"]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert doctor.accelerators().level == "problem"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert doctor.accelerators().level == "note", "hidden on purpose"


def test_a_service_that_answers(monkeypatch):
    monkeypatch.setattr(requests, "head", lambda url, timeout, allow_redirects: None)
    assert doctor.service("hub", "https://hub", "no models") == Finding("ok", "hub", "https://hub answers")


@pytest.mark.parametrize(("free", "level"), [(2**29, "problem"), (2**31, "note"), (2**40, "ok")])
def test_disks(free, level, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**41, 0, free))
    found = list(doctor.disks(tmp_path / "not" / "yet"))
    assert [finding.level for finding in found] == [level] * 2


@pytest.mark.slow
def test_a_trial_trains_a_stage(monkeypatch):
    monkeypatch.setattr(trials, "QUANTIZATIONS", ("nf4",))
    monkeypatch.setattr(trials, "ZERO_STAGES", (0,))
    assert list(trials.trials(RUN_STAGE)) == [Finding("ok", "nf4, ZeRO-0", "trains")]


def test_a_trial_that_fails_says_why(tmp_path, monkeypatch):
    script = tmp_path / "broken.py"
    script.write_text("import sys; print('RuntimeError: no kernel', file=sys.stderr); sys.exit(1)\n")
    monkeypatch.setattr(trials.Launch, "command", lambda launch, stage: ["python3", str(script)])
    monkeypatch.setattr(trials, "QUANTIZATIONS", ("int8",))
    monkeypatch.setattr(trials, "ZERO_STAGES", (3,))
    reason = "did not train: ended with status 1: RuntimeError: no kernel"
    assert list(trials.trials(script)) == [Finding("note", "int8, ZeRO-3", reason)]


@pytest.mark.parametrize("world", [1, 3, 5, 6, 7, 8])
def test_a_trial_has_a_batch_that_its_ranks_can_share(world, monkeypatch):
    launches = []

    def command(launch, _stage):
        launches.append(launch)
        return ["true"]

    monkeypatch.setattr("launch.deepspeed_command.count_accelerators", lambda: world)
    monkeypatch.setattr(trials.Launch, "command", command)
    monkeypatch.setattr(trials, "QUANTIZATIONS", ("nf4",))
    assert len(list(trials.trials(RUN_STAGE))) == len(launches) == 3
    for launch in launches:
        config = load_experiment(trials.TINY, [word for word in launch.arguments if "=" in word])
        check_batches(config, "sft", world)
