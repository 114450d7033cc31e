"""What `tristage plan` says about memory, disk and download."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
import requests
from rich.console import Console

from configs.schema import Base, Experiment
from pipeline.planning.plan import plan_stages
from pipeline.planning.stage_memory import Rank
from pipeline.terminal.memory_table import print_memory
from tests.support.pipeline_runs import request, toy, write_stage

GIB = 2**30


def printed(run: Path, config: Experiment, available: int, *, gpu: bool = False) -> str:
    console = Console(width=120, file=StringIO())
    asked = request(run, config)
    print_memory(
        console, asked, plan_stages(asked, ["sft", "rm", "ppo"]), Rank(gpu=gpu, bf16=gpu, available=available)
    )
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def large() -> Experiment:
    return toy(base__model="Qwen/Qwen2.5-7B-Instruct")


@pytest.fixture(autouse=True)
def no_hub(monkeypatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError

    monkeypatch.setattr("requests.get", unreachable)


def test_each_stage_that_runs_has_a_row(tmp_path, tiny_folder) -> None:
    write_stage(tmp_path, "sft")
    lines = printed(tmp_path, toy(), 8 * GIB).splitlines()
    assert lines[0].startswith("estimated memory of a rank; 8.00 GiB of RAM are free")
    assert [line.split()[0] for line in lines[2:]] == ["rm", "ppo"]


def test_what_is_not_there_is_warned_about(tmp_path, large) -> None:
    text = printed(tmp_path, large, 60 * GIB, gpu=True)
    assert "warning: stage sft may run out of memory: it takes about" in text
    assert (
        "a rank can have 60.0 GiB of GPU memory. Its largest part is activations: lower sft.micro_batch_size"
        in text
    )
    assert "download: 14.2 GiB of Qwen/Qwen2.5-7B-Instruct" in text
    assert "run out of memory" not in printed(tmp_path, large, 200 * GIB, gpu=True)


def test_what_cannot_fit_is_said_in_stronger_words(tmp_path, large) -> None:
    assert "stage ppo will almost certainly run out of memory" in printed(tmp_path, large, 2 * GIB)


def test_an_unknown_base_has_no_estimate(tmp_path) -> None:
    text = printed(tmp_path, toy(base__model="nobody/knows-it"), 8 * GIB)
    assert text.startswith("no estimate of memory for base: the hub did not answer")


def test_a_base_that_nobody_showed_is_warned_about(tmp_path, large) -> None:
    for config, model in ((toy(base__model="nobody/knows-it"), "nobody/knows-it"), (large, large.base.model)):
        expected = f"warning: base.model: {model} is not on this machine, and the hub did not answer. The run"
        assert expected in printed(tmp_path, config, 200 * GIB)


@pytest.mark.parametrize("status", [401, 404])
def test_a_base_that_the_hub_does_not_give_is_told(tmp_path, monkeypatch, status: int) -> None:
    def refuse(*_: object, **__: object) -> requests.Response:
        answer = requests.Response()
        answer.status_code = status
        return answer

    monkeypatch.setattr("pipeline.planning.base_shapes.requests.get", refuse)
    text = printed(tmp_path, toy(base__model="nobody/knows-it"), 8 * GIB)
    assert "and the hub has no nobody/knows-it that you may read. The run needs it" in text


def test_a_full_disk_is_warned_about(tmp_path, large, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2**20}))
    assert f"and {tmp_path} has 0.00 GiB. Free some space." in printed(tmp_path, large, 200 * GIB)


def test_the_remedy_names_the_base_that_could_recompute(tmp_path) -> None:
    model = "Qwen/Qwen2.5-7B-Instruct"
    for on in (False, True):
        config = toy(
            base__model=model,
            base__gradient_checkpointing=True,
            rm__base=Base(model=model, quantization="int8", gradient_checkpointing=on).model_dump(),
        )
        text = printed(tmp_path, config, 20 * GIB, gpu=True)
        remedy = "lower rm.micro_batch_size, or set rm.base.gradient_checkpointing to true"
        assert (remedy in text) is not on and "or set base.gradient_checkpointing" not in text
