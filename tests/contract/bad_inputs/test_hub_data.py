"""Data of the hub is looked at before the first stage trains: it is there, and its first rows can serve."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from configs.errors import UserError
from configs.load import load_experiment
from configs.schema import Source
from data.sources.hub import hub_shows
from stages.preflight import check_material, material
from tests.contract.bad_inputs.entry import check_message, experiment, tristage, write_rows
from tests.support.hub_stub import HubStub, hub_stub

pytestmark = pytest.mark.usefixtures("material_checks")
SHORT = ("data.max_length=256", "data.max_prompt_length=128")


def trial(folder: Path) -> Path:
    """An experiment with twenty rows for each stage."""
    file = experiment(folder)
    for stage in ("sft", "rm", "ppo"):
        write_rows(
            folder / f"{stage}.jsonl", [{"prompt": f"{n}?", "completions": ["a", "b"]} for n in range(20)]
        )
    return file


def jsonl(**row: object) -> bytes:
    return json.dumps(row).encode() + b"\n"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStub]:
    """A hub with a usable set of prompts, and one whose third row is no ranking."""
    good = jsonl(prompt="How are you?") + jsonl(prompt="Name a colour.")
    ranking = jsonl(prompt="p", completions=["a", "b"])
    sets = {"some/prompts": good, "some/rankings": ranking * 2 + jsonl(prompt="p", completion="a") + ranking}
    with hub_stub({name: {"data/train.jsonl": rows} for name, rows in sets.items()}) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setenv("HF_ENDPOINT", server.url)  # of the process that makes the checks
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
        yield server


@pytest.mark.usefixtures("cold_preflight")
def test_rows_are_refused_before_anything_trains(hub: HubStub, tmp_path: Path) -> None:
    options = ["data.rm.path=some/rankings", "data.ppo.path=some/prompts"]
    status, _, err = tristage(
        "run", "--config", trial(tmp_path), "--run-dir", tmp_path / "run", *SHORT, *options
    )
    assert status == 2 and not (tmp_path / "run").exists()
    check_message(err, "error: some/rankings (train): 1 of 4 rows cannot", "row 3: the keys `prompt`, ")


@pytest.mark.usefixtures("cold_preflight")
def test_the_plan_says_how_much_was_read(hub: HubStub, tmp_path: Path) -> None:
    options: list[str | Path] = ["--config", trial(tmp_path), "--run-dir", tmp_path / "run", *SHORT]
    status, out, err = tristage("plan", *options, "data.ppo.path=some/prompts")
    assert status == 0, err
    assert "data.ppo: a data set of the hub; only its first 1,000 rows were read" in out


def test_a_name_that_the_hub_does_not_know(hub: HubStub, tmp_path: Path) -> None:
    config = load_experiment(trial(tmp_path), [*SHORT, "data.ppo.path=no/such"])
    with pytest.raises(UserError, match="no/such: this account can read no data set"):
        check_material(config, "ppo")


def test_a_hub_that_does_not_answer_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    config = load_experiment(trial(tmp_path), [*SHORT, "data.ppo.path=some/prompts"])
    remarks = [remark for check in material(config, ["ppo"]) for remark in check.run()]
    assert remarks == [
        "warning: data.ppo: some/prompts is no file of this machine, and the hub did not answer. The run "
        "needs it, and nothing of it is checked yet."
    ]


def test_a_revision_is_asked_for(hub: HubStub, tmp_path: Path) -> None:
    assert hub_shows(Source(path="some/prompts", revision="v1"))
    with pytest.raises(UserError, match="with this name and revision v1"):
        hub_shows(Source(path="no/such", revision="v1"))
