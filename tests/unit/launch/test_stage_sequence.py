"""Launching stages: command lines, environments, exit codes and signals, with a stub for `deepspeed`."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from configs.errors import UserError
from configs.schema import Stage
from launch import commands, deepspeed_command, stage_sequence
from launch.deepspeed_command import Launch, guess_accelerators, read_slots
from launch.stage_sequence import run_all
from pipeline.planning import plan
from pipeline.planning.plan import StagePlan, plan_stage, plan_stages
from pipeline.planning.request import Request
from pipeline.state.manifest import Process
from tests.contract.bad_inputs.entry import experiment
from tests.support.pipeline_runs import request, toy, write_stage

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed_command, "count_accelerators", lambda: 0)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def launch(arguments=(), **options) -> Launch:
    return Launch(Path("launch/run_stage.py"), arguments, **options)


def test_cpu_gets_one_process_of_this_environment(cpu_only: None) -> None:
    command = launch(["--config", "a.yaml"]).command("rm")
    assert command[0] == str(Path(sys.executable).parent / "deepspeed")
    assert command[command.index("--num_accelerators") + 1] == "1"
    assert command[-5:] == ["rm", "--caller", "tristage", "--config", "a.yaml"]
    environment = launch().environment()
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert environment["DS_ACCELERATOR"] == "cpu"


@pytest.mark.parametrize(
    ("status", "readable"),
    [
        (0, 0),
        (1, 1),
        (2, 2),
        (-9, 137),
        (247, 137),
        (241, 143),
        (254, 130),
        (255, 255),
        (137, 137),
        (130, 130),
    ],
)
def test_a_killed_rank_ends_as_shells_say_it(status: int, readable: int) -> None:
    assert stage_sequence.readable_status(status) == readable


def test_every_launch_has_a_port_of_its_own(cpu_only: None) -> None:
    ports = []
    for command in (launch().command("sft"), launch().command("sft")):
        ports.append(int(command[command.index("--master_port") + 1]))
        with socket.create_server(("127.0.0.1", ports[-1])):
            pass  # it is free


def test_all_gpus_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed_command, "count_accelerators", lambda: 8)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    assert "--num_accelerators" not in launch().command("sft")
    assert launch().world() == 8
    assert "DS_ACCELERATOR" not in launch().environment()


def test_visible_devices_survive_a_given_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed_command, "count_accelerators", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
    command = launch(accelerators=2).command("sft")
    assert command[command.index("--include") + 1] == "localhost:2,5"
    assert "--num_accelerators" not in command


@pytest.mark.parametrize(
    ("accelerators", "visible", "message"),
    [
        (
            None,
            "GPU-8f4f2c1a,GPU-0b1d",
            "CUDA_VISIBLE_DEVICES: deepspeed takes only numbers, not GPU-8f4f2c1a",
        ),
        (1, "MIG-41b3", "CUDA_VISIBLE_DEVICES: deepspeed takes only numbers, not MIG-41b3"),
        (4, "0,1", "--num-accelerators: 4, but this machine has 2. Set it to 2 or less."),
    ],
)
def test_devices_that_deepspeed_cannot_be_told(
    accelerators: int | None, visible: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deepspeed_command, "count_accelerators", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(UserError, match=re.escape(message)):
        launch(accelerators=accelerators).check_devices()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    launch(accelerators=2).check_devices()
    monkeypatch.setattr(deepspeed_command, "count_accelerators", lambda: 0)
    launch(accelerators=4).check_devices()  # ranks may share a CPU


def test_hostfile(tmp_path: Path) -> None:
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("# two machines\nnode-1 slots=8\n\nnode-2 slots=4 # smaller\n")
    assert read_slots(hostfile) == [8, 4]
    assert launch(hostfile=hostfile).world() == 12
    command = launch(hostfile=hostfile).command("sft")
    assert command[command.index("--hostfile") + 1] == str(hostfile)
    assert "--master_port" not in command


def test_shipped_hostfile_example_reads() -> None:
    assert read_slots(ROOT / "launch/hostfile.example") == [8, 8]


def test_bad_hostfile_names_the_line(tmp_path: Path) -> None:
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("node-1 slots=8\nnode-2\n")
    with pytest.raises(UserError, match="line 2: expected `NAME slots=N`, found `node-2`"):
        read_slots(hostfile)
    with pytest.raises(UserError, match="does not exist"):
        read_slots(tmp_path / "nowhere")


@pytest.mark.parametrize(("visible", "count"), [("", 0), ("3", 1), ("0,1,2", 3)])
def test_guess_follows_visible_devices(monkeypatch: pytest.MonkeyPatch, visible: str, count: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert guess_accelerators() == count


class StandIn:
    """Replaces a launch: records the stage and writes its files."""

    def __init__(self, plan_and_run: Path, statuses: dict[str, int], finish: bool = True) -> None:
        self.run, self.statuses, self.finish = plan_and_run, statuses, finish
        self.launched: list[str] = []

    def __call__(self, launch: Launch, stage, manifest: Path) -> int:
        self.launched.append(stage)
        if self.statuses.get(stage, 0) == 0 and self.finish:
            write_stage(self.run, stage)
        return self.statuses.get(stage, 0)


def plan_and_run(request: Request, launch: Launch, stages: Sequence[Stage]) -> int:
    """Plan all stages, then run them, as `tristage run` does."""
    return run_all(request, launch, plan_stages(request, stages))


def test_stages_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_only: None) -> None:
    stand_in = StandIn(tmp_path, {})
    monkeypatch.setattr(stage_sequence, "_launch", stand_in)
    assert plan_and_run(request(tmp_path), launch(), ["sft", "rm", "ppo"]) == 0
    assert stand_in.launched == ["sft", "rm", "ppo"]
    assert plan_and_run(request(tmp_path), launch(), ["sft", "rm", "ppo"]) == 0
    assert stand_in.launched == ["sft", "rm", "ppo"], "finished stages are not launched"


def test_tristage_run_plans_each_stage_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_only: None
) -> None:
    run_dir, planned = tmp_path / "run", []

    def record_stage(request: Request, stage: Stage, **state: Any) -> StagePlan:
        planned.append(stage)
        return plan_stage(request, stage, **state)

    monkeypatch.setattr(plan, "plan_stage", record_stage)
    monkeypatch.setattr(stage_sequence, "_launch", StandIn(run_dir, {"ppo": 7}))
    arguments = ["--config", str(experiment(tmp_path)), "--run-dir", str(run_dir)]
    monkeypatch.setattr("sys.argv", ["tristage", "run", *arguments])
    assert commands.main() == 7
    assert planned == ["sft", "rm", "ppo"]


def test_first_failure_stops_with_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_only: None
) -> None:
    stand_in = StandIn(tmp_path, {"rm": 7})
    monkeypatch.setattr(stage_sequence, "_launch", stand_in)
    assert plan_and_run(request(tmp_path), launch(), ["sft", "rm", "ppo"]) == 7
    assert stand_in.launched == ["sft", "rm"]


def test_a_launcher_that_ends_well_without_a_result_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_only: None, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage_sequence, "_launch", StandIn(tmp_path, {}, finish=False))
    assert plan_and_run(request(tmp_path), launch(), ["sft"]) == 1
    said = capsys.readouterr().err
    assert "stage sft ended with status 1 (its process ended with status 0 before the stage was done" in said
    for stage in ("sft", "rm"):
        write_stage(tmp_path, stage)
    with_code = toy(ppo__rewards=[{"source": "theirs:score"}])
    assert plan_and_run(request(tmp_path, with_code), launch(), ["ppo"]) == 1
    assert "or code that it called ended it: ppo.rewards: theirs:score); its logs" in capsys.readouterr().err


def test_a_crash_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_only: None, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = tmp_path / "sft" / "logs" / "rank0.stack"
    stack.parent.mkdir(parents=True)
    code = f"import ctypes, faulthandler; faulthandler.enable(open({str(stack)!r}, 'w')); ctypes.string_at(0)"
    crashed = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert crashed.returncode == -signal.SIGSEGV
    monkeypatch.setattr(stage_sequence, "_launch", StandIn(tmp_path, {"sft": 139}))
    assert plan_and_run(request(tmp_path), launch(), ["sft"]) == 139
    assert "stage sft ended with status 139 (Segmentation fault at " in capsys.readouterr().err


def test_nothing_starts_if_a_later_stage_is_blocked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_only: None
) -> None:
    stand_in = StandIn(tmp_path, {})
    monkeypatch.setattr(stage_sequence, "_launch", stand_in)
    with pytest.raises(UserError, match=r"ppo\.batch_size"):
        plan_and_run(request(tmp_path, toy(ppo__batch_size=9)), launch(accelerators=2), ["sft", "rm", "ppo"])
    with pytest.raises(UserError, match="needs stage sft"):
        plan_and_run(request(tmp_path), launch(), ["rm", "ppo"])
    assert stand_in.launched == []


DEEPSPEED = """#!/bin/bash
# Like the real command, starts a process and dies of SIGTERM without forwarding it.
trap 'echo launcher >> {mark}; exit 1' TERM
{python} -c '
import os, pathlib, signal, sys, time
def stop(signum, _):
    time.sleep(0.5)
    pathlib.Path("{mark}").open("a").write(signal.Signals(signum).name)
    sys.exit(128 + signum)
signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
pathlib.Path("{ready}.part").write_text(str(os.getpid()))
pathlib.Path("{ready}.part").rename("{ready}")
time.sleep(60)
' &
wait
"""


@pytest.mark.parametrize("has_rank_0", [False, True], ids=["before there is a rank 0", "rank 0"])
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_reaches_the_ranks_and_is_waited_for(
    tmp_path: Path, signum: signal.Signals, status: int, has_rank_0: bool
) -> None:
    mark, ready, bin_folder = tmp_path / "mark", tmp_path / "ready", tmp_path / "bin"
    manifest = tmp_path / "sft" / "manifest.json"
    bin_folder.mkdir()
    (bin_folder / "deepspeed").write_text(DEEPSPEED.format(python=sys.executable, mark=mark, ready=ready))
    (bin_folder / "deepspeed").chmod(0o755)
    code = (
        "import sys; from pathlib import Path; from launch import deepspeed_command, stage_sequence\n"
        "deepspeed_command.count_accelerators = lambda: 0\n"
        f"sys.executable = {str(bin_folder / 'python')!r}\n"
        "launch = deepspeed_command.Launch(Path('run_stage.py'), [])\n"
        f"sys.exit(stage_sequence._launch(launch, 'sft', Path({str(manifest)!r})))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    deadline = time.monotonic() + 30
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    if has_rank_0:
        rank = Process(pid=int(ready.read_text()), host=socket.gethostname())
        write_stage(tmp_path, "sft", "running").model_copy(update={"process": rank}).write(manifest)
    process.send_signal(signum)
    time.sleep(0.2)  # if two signals are pending, either may be handled first
    process.send_signal(signal.SIGTERM)  # as `timeout` does; it does not count as a second signal
    assert process.wait(timeout=30) == status
    assert mark.read_text() == (signum.name if has_rank_0 else "launcher\nSIGTERM")
