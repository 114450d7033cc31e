"""Mistakes with `tristage serve`, `chat` and `evaluate`: each is told before a model is loaded."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from configs.load import dump_experiment
from launch import arguments
from tests.contract.bad_inputs.entry import check_message, tristage
from tests.support.pipeline_runs import toy, write_stage


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of which only SFT has finished."""
    run = tmp_path / "run"
    write_stage(run, "sft")
    (run / "config.yaml").write_text(dump_experiment(toy()))
    return run


MISTAKES = {
    "an unknown policy": (["chat", "--policy", "dpo"], ["policy 'dpo'", "base, sft"]),
    "a stage that has not run": (
        ["chat", "--policy", "ppo"],
        ["stage ppo has not finished", "finished: sft"],
    ),
    "two ways to choose": (["chat", "--policy", "sft", "--compare", "base", "sft"], ["not both"]),
    "one policy twice": (["chat", "--compare", "sft", "sft"], ["twice the same policy"]),
    "no policy at all": (["serve", "--policies", ""], ["policy ''"]),
    "one policy that is not there": (["serve", "--policies", "sft,ppo"], ["stage ppo has not finished"]),
    "other machines without a key": (["serve", "--host", "0.0.0.0"], ["--host 0.0.0.0", "TRISTAGE_API_KEY"]),
    "a key that no header holds": (["serve", "--api-key", "a b"], ["TRISTAGE_API_KEY", "blanks"]),
    "no address": (
        ["serve", "--host", "no.such.host.example", "--api-key", "a-key-of-no-use"],
        ["--host no.such.host"],
    ),
    "no port": (["serve", "--port", "65536"], ["--port", "less than or equal to 65535"]),
    "one policy twice, after a blank": (["evaluate", "--policies", "sft, sft"], ["'sft' stands there twice"]),
    "an unknown judge after a blank": (
        ["evaluate", "--judges", "warmth, nobody"],
        ["--judges: 'nobody' is no judge"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told(name: str, run: Path) -> None:
    arguments, parts = MISTAKES[name]
    status, _, error = tristage(*arguments, "--run-dir", run)
    assert status == 2
    check_message(error, *parts)


@pytest.mark.parametrize("command", ["serve", "chat"])
def test_a_folder_that_is_no_run(command: str, tmp_path: Path) -> None:
    status, _, error = tristage(command, "--run-dir", tmp_path)
    assert status == 2
    check_message(error, str(tmp_path), "it has no config.yaml")


def test_a_damaged_adapter(run: Path) -> None:
    (run / "sft" / "adapter" / "adapter_model.safetensors").write_text("other weights")
    status, _, error = tristage("chat", "--policy", "sft", "--run-dir", run)
    assert status == 2
    check_message(error, "adapter_model.safetensors", "train stage sft again")


def test_a_port_that_is_taken(run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        status, _, error = tristage("serve", "--port", port, "--run-dir", run)
    assert status == 2
    check_message(error, f"--port {port}", "Address already in use", "Give another address")


def test_a_library_that_is_missing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "find_spec", lambda name: None)
    status, _, error = tristage("serve", "--run-dir", run)
    assert status == 2
    check_message(error, "needs starlette and uvicorn", ".[serve]")
