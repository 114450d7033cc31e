"""Data of the hub is looked at before the first stage trains: it is there, and its first rows can serve."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import datasets
import huggingface_hub
import pytest

from configs.errors import UserError
from configs.load import load_experiment
from stages.preflight import check_material, material
from tests.contract.bad_inputs.entry import SHORT, check_message, trial, tristage
from tests.support.hub_stub import HubStub, hub_stub

pytestmark = pytest.mark.usefixtures("material_checks")


def jsonl(**row: object) -> bytes:
    return json.dumps(row).encode() + b"\n"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStub]:
    """A hub with a usable set of prompts, and one whose third row is no ranking."""
    good = jsonl(prompt="How are you?") + jsonl(prompt="Name a colour.")
    ranking = jsonl(prompt="p", completions=["a", "b"])
    sets = {"some/prompts": good, "some/rankings": ranking * 2 + jsonl(prompt="p", completion="a") + ranking}
    with hub_stub({name: {"data/train.jsonl": rows} for name, rows in sets.items()}) as server:
        use_hub(monkeypatch, server.url, tmp_path / "hub")
        yield server


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """Make the clients of this process and of later ones ask the hub at `url`."""
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setenv("HF_HOME", str(cache))
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)
    for name in ("HF_DATASETS_CACHE", "HF_MODULES_CACHE", "DOWNLOADED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, cache / name)
    huggingface_hub.HfFileSystem.clear_instance_cache()


def remarks_of(folder: Path, *overrides: str) -> list[str]:
    config = load_experiment(trial(folder), [*SHORT, *overrides])
    return [remark for check in material(config, ["ppo"]) for remark in check.run()]


@pytest.mark.usefixtures("cold_preflight")
def test_rows_are_refused_before_anything_trains(hub: HubStub, tmp_path: Path) -> None:
    overrides = ["data.rm.path=some/rankings", "data.ppo.path=some/prompts"]
    options: list[str | Path] = ["--config", trial(tmp_path), "--run-dir", tmp_path / "run", *SHORT]
    status, _, err = tristage("run", *options, *overrides)
    assert status == 2 and not (tmp_path / "run").exists()
    check_message(err, "error: some/rankings (train): 1 of 4 rows cannot", "row 3: the keys `prompt`, ")


def test_a_remark_says_how_much_was_read(hub: HubStub, tmp_path: Path) -> None:
    for more in ((), ("data.ppo.streaming=true", "data.ppo.limit=2")):
        assert remarks_of(tmp_path, "data.ppo.path=some/prompts", *more) == [
            "data.ppo: some/prompts is on the hub; only its first rows were read, 1,000 at most"
        ]


def test_a_limit_ends_what_is_read(hub: HubStub, tmp_path: Path) -> None:
    """The third row cannot serve."""
    overrides = [*SHORT, "data.rm.path=some/rankings"]
    check_material(load_experiment(trial(tmp_path), [*overrides, "data.rm.limit=2"]), "rm")
    with pytest.raises(UserError, match="row 3"):
        check_material(load_experiment(trial(tmp_path), [*overrides, "data.rm.limit=3"]), "rm")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (
            ("data.ppo.path=no/such",),
            "no/such (train): this account cannot read that from the hub: Dataset 'no/s",
        ),
        (
            ("data.ppo.name=other",),
            "some/prompts (other, train): this account cannot read that from the hub: Buil",
        ),
        (
            ("data.ppo.split=test",),
            "some/prompts (test): the data set has no split test. Set `split` to one of t",
        ),
        (("data.ppo.split=test[:10%]",), "the data set has no split test"),
        (("data.ppo.data_dir=texts",), "this account cannot read that from the hub"),
    ],
)
def test_a_source_that_the_hub_does_not_have(
    overrides: tuple[str, ...], reason: str, hub: HubStub, tmp_path: Path
) -> None:
    config = load_experiment(trial(tmp_path), [*SHORT, "data.ppo.path=some/prompts", *overrides])
    with pytest.raises(UserError) as caught:
        check_material(config, "ppo")
    check_message(str(caught.value), reason)


def test_a_slice_is_left_to_the_stage(hub: HubStub, tmp_path: Path) -> None:
    assert remarks_of(tmp_path, "data.ppo.path=some/prompts", "data.ppo.split=train[:1]") == [
        "data.ppo: some/prompts is on the hub; its rows are not read yet, as `split` is a slice"
    ]


def test_a_set_that_cannot_be_streamed_is_a_warning(
    hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise NotImplementedError("Extraction protocol for TAR archives is not implemented in streaming mode")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    assert remarks_of(tmp_path, "data.ppo.path=some/prompts") == [
        "warning: data.ppo: some/prompts is on the hub, and its first rows could not be read yet"
    ]


def test_a_hub_that_does_not_answer_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    use_hub(monkeypatch, url, tmp_path / "hub")
    assert remarks_of(tmp_path, "data.ppo.path=some/prompts") == [
        "warning: data.ppo: some/prompts is no file of this machine, and the hub did not answer. The run "
        "needs it, unless the cache has it, and nothing of it is checked yet."
    ]
