"""The environment of a run: variables of launchers and of W&B, hostfiles, ports."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.load import load_experiment
from launch.deepspeed_command import read_slots
from stages.distributed.environment import check_rendezvous, rank_and_world
from tests.contract.bad_inputs.entry import check_message, experiment, files, stage_run, tristage
from tests.support.pipeline_runs import write_stage

ROOT = Path(__file__).resolve().parents[3]
JOB = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
JOIN = """
from configs.errors import UserError
from configs.schema import DeepSpeed
from stages.distributed.process_group import init_distributed
try:
    init_distributed(DeepSpeed())
except UserError as error:
    print(error)
"""


@pytest.fixture(autouse=True)
def no_job(monkeypatch):
    for name in (*JOB, "WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("value", ["of-line", "ONLINE", "1", "x" * 10000])
def test_wandb_mode(value, tmp_path, monkeypatch):
    """The error comes before a finished stage that is to run again is set aside."""
    file = experiment(tmp_path)
    write_stage(tmp_path / "run", "sft", config=load_experiment(file))
    before = files(tmp_path / "run")
    monkeypatch.setenv("WANDB_MODE", value)
    status, output = stage_run(file, tmp_path / "run", "sft", force=True)
    assert status == 2 and files(tmp_path / "run") == before
    check_message(output.splitlines()[-1], f"error: WANDB_MODE={value[:40]}", "use one of online, offline")


@pytest.mark.parametrize("name", ["zork", "xpu", "", "CPU", "x" * 10000])
def test_accelerator(name, tmp_path, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", name)
    for status, said in (
        tristage("plan", "--config", experiment(tmp_path))[::2],
        tristage("run", "--config", experiment(tmp_path), "--run-dir", tmp_path / "run")[::2],
        stage_run(experiment(tmp_path), tmp_path / "run", "sft"),
    ):
        assert status == 2 and not (tmp_path / "run").exists()
        check_message(said, f"error: DS_ACCELERATOR={name[:40]}: unknown; use one of cpu, cuda")


@pytest.mark.parametrize("command", ["plan", "run", "status", "report"])
@pytest.mark.parametrize("name", ["loop", "loop/run", "x" * 300, "r\udcfcn", "r\udcfcn/below"])
def test_a_run_directory_that_cannot_be(name, command, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    words = ["--config", experiment(tmp_path), "--run-dir", tmp_path / name]
    status, out, stderr = tristage(command, *words)
    assert (status, out) == (2, "")
    check_message(
        stderr, "error: --run-dir: ", "give another --run-dir" if "\udcfc" in name else "Give another"
    )


@pytest.mark.parametrize("name", ["x" * 300 + ".jsonl", "loop.jsonl", "loop.jsonl/x.jsonl"])
@pytest.mark.parametrize("key", ["data.sft.path", "base.model", "deepspeed.config", "data.chat_template"])
def test_a_path_that_cannot_be(key, name, tmp_path):
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    words = ["--config", experiment(tmp_path), "--run-dir", tmp_path / "run"]
    for command in ("plan", "run"):
        status, _, stderr = tristage(command, *words, f"{key}={tmp_path / name}")
        assert status == 2 and not (tmp_path / "run").exists()
        check_message(stderr, f"{key}: ")


@pytest.mark.parametrize("place", ["none", "file", "folder", "."])
def test_status_of_what_is_no_run(place, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("precious")
    status, out, stderr = tristage("status", "--run-dir", tmp_path / place)
    assert (status, out) == (2, "")
    where = (tmp_path / place).resolve()
    is_file = f"error: --run-dir: {where}: {where} is a file. Name a folder."
    check_message(stderr, is_file if place == "file" else f"error: {where}: no stage has run there")


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero"])
@pytest.mark.parametrize("what", ["config", "deepspeed.config", "hostfile", "manifest", "data.sft.path"])
def test_what_never_ends_is_not_read(what, kind, tmp_path):
    file, place = experiment(tmp_path), tmp_path / "endless.jsonl"
    os.mkfifo(place) if kind == "pipe" else place.symlink_to(kind)
    words = ["--config", place if what == "config" else file, "--run-dir", tmp_path / "run"]
    words += [f"{what}={place}"] if "." in what else ["--hostfile", place] if what == "hostfile" else []
    if what == "manifest":
        (tmp_path / "run/sft").mkdir(parents=True)
        place.rename(tmp_path / "run/sft/manifest.json")
    status, _, stderr = tristage("plan", *words)
    assert status == 2
    check_message(stderr, "error: ")


@pytest.mark.parametrize("command", ["plan", "run", "sweep"])
def test_wandb_mode_is_told_before_anything_starts(command, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "of-line")
    status, out, stderr = tristage(command, "--config", experiment(tmp_path), "--run-dir", tmp_path / "run")
    assert status == 2 and not (tmp_path / "run").exists()
    assert ("sft  run" in out) == (command == "plan"), "which shows its decisions all the same"
    check_message(stderr, "error: WANDB_MODE=of-line")


@pytest.mark.parametrize(
    ("variables", "part"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is not set, though RANK is"),
        ({"RANK": "1"}, "WORLD_SIZE is not set, though RANK is"),
        ({"WORLD_SIZE": "2"}, "RANK is not set, though WORLD_SIZE is"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK=one: not a number"),
        ({"RANK": "0", "WORLD_SIZE": "-1"}, "WORLD_SIZE=-1: not a number"),
        ({"RANK": "²", "WORLD_SIZE": "2"}, "RANK=²: not a number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2: WORLD_SIZE is 2, so ranks end at 1"),
        ({"RANK": "9" * 5000, "WORLD_SIZE": "2"}, "RANK=9999"),
    ],
)
def test_half_a_job(variables, part, tmp_path, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError):
        rank_and_world()
    status, output = stage_run(experiment(tmp_path), tmp_path / "run", "sft")
    assert status == 2 and not (tmp_path / "run").exists()
    check_message(output, f"error: {part}", "Start with `deepspeed`, `torchrun` or `tristage run`")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"LOCAL_RANK": ""}, "LOCAL_RANK is not set, though RANK, WORLD_SIZE is"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT=http: not a number"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000: ports end at 65535"),
    ],
)
def test_nowhere_to_meet(changes, part, monkeypatch):
    for name, value in (dict(zip(JOB, ("0", "1", "0", "localhost", "29500"), strict=True)) | changes).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        check_rendezvous()
    check_message(str(caught.value), part)


def join_process_group(port: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """Run a process that joins a job of one rank at a port, and then runs `code`."""
    job = dict(zip(JOB, ("0", "1", "0", "127.0.0.1", port), strict=True))
    return subprocess.run(
        [sys.executable, "-c", f"{JOIN}\n{code}"],
        cwd=ROOT,
        env={**os.environ, **job, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_port_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = join_process_group(port)
    message = result.stdout.strip().splitlines()[-1]
    check_message(message, "MASTER_ADDR, MASTER_PORT: ", f"127.0.0.1:{port}", "--master_port")


def test_what_a_job_on_one_machine_opens_is_open_to_that_machine_alone():
    result = join_process_group(
        "0",
        "import psutil, torch; torch.distributed.all_reduce(torch.ones(1))\n"
        "connections = psutil.Process().net_connections('inet')\n"
        "listening = [end for end in connections if end.status == psutil.CONN_LISTEN]\n"
        "print(*sorted({end.laddr.ip for end in listening}))",
    )
    assert result.stdout.strip().splitlines()[-1] == "127.0.0.1", result.stdout + result.stderr


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "launch/hostfile.example shows the form"),
        (b"", "names no machine"),
        (b"# nothing\n\n", "names no machine"),
        (b"one slots=2\ntwo\n", "line 2: expected `NAME slots=N`, found `two`. Correct it"),
        (b"one slots=0\n", "line 1: expected `NAME slots=N`"),
        (b"one slots=-1\n", "line 1: expected `NAME slots=N`"),
        (b"one slots=" + b"9" * 5000 + b"\n", "line 1: expected `NAME slots=N`"),
        ("one slots=²\n".encode(), "line 1: expected `NAME slots=N`"),
        (b"one slots=2\none slots=2\n", "line 2: one is named twice. Add up its slots"),
        (b"one slots=2 gpu=h100\n", "line 1: expected `NAME slots=N`"),
        (b"\xff\xfe", "not UTF-8 at byte 0"),
    ],
)
def test_hostfile(content, part, tmp_path):
    hostfile = tmp_path / "hosts"
    if content is not None:
        hostfile.write_bytes(content)
    status, _, stderr = tristage("plan", "--config", experiment(tmp_path), "--hostfile", hostfile)
    assert status == 2
    check_message(stderr, str(hostfile), part)


HOSTS = (
    "-oProxyCommand=touch${IFS}owned", "--help", "-", ".", ".a", "a..b", "$(id)", "`id`", "a;id", "a|id",
    "a&id", "a,b", "node[1-3]", "^/etc/passwd", "ssh:a", "me@a", "a:22", "fe80::1", "a/b", "a\\b", "'a'",
    '"a"', "a>b", "ä", "a\x1b[31m", "a\x00b", "a" * 64, "a." * 130 + "a", "a*", "~", "!a", "a=b", "-1", "_a",
)  # fmt: skip


@pytest.mark.parametrize("command", ["plan", "run", "sweep"])
@pytest.mark.parametrize("name", HOSTS)
def test_a_host_is_a_name_or_an_address(name, command, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("nothing may start"))
    hostfile = tmp_path / "hosts"
    hostfile.write_text(f"one slots=1\n{name} slots=2\n")
    words = ("--config", experiment(tmp_path), "--run-dir", tmp_path / "run", "--hostfile", hostfile)
    status, _, stderr = tristage(command, *words)
    assert status == 2 and not (tmp_path / "run").exists()
    check_message(stderr, f"{hostfile}: line 2: ", "is not a host name or an IPv4 address")
    assert "\x1b" not in stderr


@pytest.mark.parametrize(
    "name", ["node-1", "10.0.0.7", "gpu_3.cluster.example.org", "A1", "a" * 63, "a-", "node."]
)
def test_names_of_hosts_are_taken(name, tmp_path):
    (tmp_path / "hosts").write_text(f"{name} slots=2 # of two\nother slots=1")
    assert read_slots(tmp_path / "hosts") == [2, 1]
