"""A new round tells which prompts it holds out although an earlier round trained on them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from configs.load import load_experiment
from configs.schema import Experiment, Stage
from data.examples import StageData
from data.sources.split import row_key
from data.storage.files import read_json_lines
from launch.rounds import RoundOptions
from launch.rounds import round as make
from pipeline.planning.next_round import make_round
from pipeline.planning.round_prompts import prompts_trained_on
from pipeline.state.manifest import read_manifest, source_hashes
from pipeline.state.run_directory import RunDirectory


@pytest.fixture
def first(trained_run: Path, tmp_path: Path) -> RunDirectory:
    """A copy of the tiny run whose demonstrations are a file beside it."""
    run = RunDirectory(shutil.copytree(trained_run, tmp_path / "tiny"))
    tree = yaml.safe_load(run.config_file.read_text())
    data = shutil.copyfile(tree["data"]["sft"]["path"], tmp_path / "first.jsonl")
    tree["data"]["sft"]["path"] = str(data)
    run.config_file.write_text(yaml.safe_dump(tree))
    stages: tuple[Stage, ...] = ("sft", "rm", "ppo")
    for stage in stages:
        manifest = read_manifest(run.manifest(stage))
        assert manifest is not None
        present = source_hashes(load_experiment(run.config_file), stage)
        manifest.model_copy(update={"sources": present}).write(run.manifest(stage))
    return run


def sides(config: Experiment, stage: Stage = "sft") -> tuple[set[str], set[str]]:
    rows = StageData(config, stage, lambda _: None).rows("demonstrations")
    return set(map(row_key, rows.train)), set(map(row_key, rows.held_out))


def round_of(first: RunDirectory, *overrides: str) -> str | None:
    run, config = make_round(first, "sft", overrides, first.path.with_name("second"))
    return prompts_trained_on(run, config)


def more(tmp_path: Path) -> Path:
    """The old rows, and as many again with other prompts."""
    old, file = read_json_lines(Path("data/samples/tiny-sft.jsonl")), tmp_path / "more.jsonl"
    new = [{**row, "prompt": f"Again: {row['prompt']}"} for row in old]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*old, *new]))
    return file


def more_held_out(tmp_path: Path) -> list[str]:
    """Overrides by which the round holds out so many prompts that old ones are among them."""
    return [f"data.sft.path={more(tmp_path)}", "data.sft.held_out=30"]


def test_a_round_on_the_same_data_says_nothing(first: RunDirectory) -> None:
    assert round_of(first) is None


def test_held_out_prompts_that_sft_trained_on_are_counted(first: RunDirectory, tmp_path: Path) -> None:
    old = load_experiment(first.config_file)
    run, config = make_round(first, "sft", more_held_out(tmp_path), tmp_path / "second")
    held_out = sides(config)[1]
    both = held_out & sides(old)[0]
    assert both, "the test needs such prompts"
    note = prompts_trained_on(run, config)
    assert note is not None
    trained = (
        f"data.sft: stage sft of {first.path} trained on {len(both)} of the {len(held_out)} held-out prompts"
    )
    assert trained in note
    assert "The same data and seed keep the split" in note and "hold out other prompts" in note


def test_the_remedy_keeps_the_split(first: RunDirectory, tmp_path: Path) -> None:
    """The earlier source first, then the new one: no prompt that SFT trained on is held out by SFT."""
    (source,) = load_experiment(first.config_file).data.sources("sft")
    old = source.model_dump(mode="json", exclude_defaults=True)
    sources = json.dumps([old, {"path": str(more(tmp_path)), "held_out": 2}])
    note = round_of(first, f"data.sft={sources}") or ""
    assert "data.sft: stage sft of" not in note, note


def test_data_that_is_gone_is_not_compared(first: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "first.jsonl").unlink()
    note = round_of(first, f"data.sft.path={more(tmp_path)}")
    assert note is not None and f"Prompts that {first.path} trained on were not compared" in note
    assert "gone" in note


def test_data_that_has_changed_is_not_compared(first: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "first.jsonl").write_bytes(more(tmp_path).read_bytes())
    note = round_of(first)
    assert note is not None and "were not compared: data.sft.path: the file's content" in note


def test_an_earlier_run_that_is_gone_is_not_compared(first: RunDirectory, tmp_path: Path) -> None:
    run, config = make_round(first, "sft", [f"data.sft.path={more(tmp_path)}"], tmp_path / "second")
    shutil.rmtree(first.path)
    note = prompts_trained_on(run, config)
    assert note is not None and note.count("were not compared") == 1 and "not a run directory" in note


def test_the_command_tells(first: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = more_held_out(tmp_path)
    assert make(RoundOptions(overrides=words, previous=first.path, stage="sft", to=tmp_path / "second")) == 0
    printed = capsys.readouterr().out
    assert f"note: data.sft: stage sft of {first.path} trained on" in printed
    assert printed.index("note: ") < printed.index("next: ")
