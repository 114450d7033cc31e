"""A run on several sources: figures by source in metrics, manifest and report; the same after a kill."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import (
    KILLED_STAGE,
    ROOT,
    assert_same_result,
    rows,
    run_stage,
    stage_arguments,
    start_warm,
)

SFT, RM = ROOT / "data" / "samples" / "tiny-sft.jsonl", ROOT / "data" / "samples" / "tiny.jsonl"
SHORT = ("sft.max_steps=2", "rm.max_steps=2")
END = re.compile(r"_(low|high|n)$")


def half(source: Path, folder: Path, part: int) -> str:
    """A file with every second row, whose name says which."""
    file = folder / f"{source.stem}-{'ab'[part]}.jsonl"
    file.write_text("".join(source.read_text().splitlines(keepends=True)[part::2]))
    return str(file)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SFT and the reward model, each on two sources, one of which counts twice."""
    folder = tmp_path_factory.mktemp("mixture")
    sft, rm = ([half(source, folder, part) for part in (0, 1)] for source in (SFT, RM))
    mixtures = (
        f"data.sft=[{{path: {sft[0]}, label: first}}, {{path: {sft[1]}, weight: 2}}]",
        f"data.rm=[{{path: {rm[0]}}}, {{path: {rm[1]}, limit: 20}}]",
        *(f"data.{stage}[{i}].held_out={n}" for stage, n in (("sft", 4), ("rm", 6)) for i in (0, 1)),
    )
    for stage in ("sft", "rm"):
        run_stage(stage, folder / "run", *mixtures, *SHORT)
    return folder / "run"


def manifest(run_dir: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / stage / "manifest.json").read_text())
    return found


def test_rows_are_counted_by_source(run_dir: Path) -> None:
    metrics = manifest(run_dir, "sft")["metrics"]
    assert metrics["sources/first/rows_train"] == 28 and metrics["sources/tiny-sft-b/rows_train"] == 56
    assert metrics["examples"] == 84 and metrics["examples_held_out"] == 8
    assert metrics["sources/tiny-sft-b/examples"] == 56
    assert manifest(run_dir, "rm")["metrics"]["sources/tiny-b/rows_read"] == 20


def test_the_digest_of_each_source_is_recorded(run_dir: Path) -> None:
    assert {"data.sft[0].path", "data.sft[1].path"} <= manifest(run_dir, "sft")["sources"].keys()


def test_the_held_out_loss_is_split_by_source(run_dir: Path) -> None:
    metrics = manifest(run_dir, "sft")["metrics"]
    losses = [metrics["eval_loss/first"], metrics["eval_loss/tiny-sft-b"]]
    assert min(losses) <= metrics["eval_loss"] <= max(losses) and losses[0] != losses[1]
    assert metrics["eval_loss/first_n"] == metrics["eval_loss/tiny-sft-b_n"] == 4
    assert any("eval/loss/first" in row for row in rows(run_dir / "sft" / "metrics.jsonl"))


def test_the_accuracy_is_split_by_source(run_dir: Path) -> None:
    metrics = manifest(run_dir, "rm")["metrics"]
    parts = [metrics[f"accuracy/tiny-{letter}"] for letter in "ab"]
    counts = [metrics[f"accuracy/tiny-{letter}_n"] for letter in "ab"]
    assert sum(counts) == metrics["accuracy_n"] == 12
    mean = sum(part * count for part, count in zip(parts, counts, strict=True)) / 12
    assert metrics["accuracy"] == pytest.approx(mean)
    report = json.loads((run_dir / "rm" / "evaluation.json").read_text())
    assert report["groups"]["source"]["tiny-a"]["value"] == parts[0]


def test_the_report_shows_sources(run_dir: Path) -> None:
    from pipeline.reporting.report import write_report

    text = write_report(run_dir).with_name("report.md").read_text()
    assert "by source: tiny-a" in text and "held-out loss, tiny-sft-b" in text
    (line,) = re.findall(r"^.*SFT \| tiny-sft-b \|.*$", text, re.MULTILINE)
    assert line.strip("| ").split(" | ")[2:] == ["32", "0", "0", "0", "0", "56", "4", "0", "0", "0"]


def test_the_metrics_page_has_every_key_of_a_mixture(run_dir: Path) -> None:
    page = (ROOT / "docs" / "reading" / "metrics.md").read_text()
    (section,) = re.findall(r"^## Several sources\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    labels = ("first", "tiny-sft-b", "tiny-a", "tiny-b")
    for stage in ("sft", "rm"):
        for key in manifest(run_dir, stage)["metrics"]:
            if any(label in key for label in labels):
                name = re.sub("|".join(map(re.escape, labels)), "LABEL", END.sub("", key))
                assert f"`{name}`" in section, key


def test_grouped_batches_of_a_mixture_resume_as_if_never_killed(tmp_path: Path) -> None:
    sources = ", ".join(f"{{path: {half(SFT, tmp_path, part)}, weight: 1.5}}" for part in (0, 1))
    options = (f"data.sft=[{sources}]", "sft.group_by_length=true", "sft.max_steps=4", "sft.save_steps=2")
    run_stage("sft", tmp_path / "whole", *options)
    killed = start_warm([KILLED_STAGE, "3", *stage_arguments("sft", tmp_path / "killed", *options)])
    assert killed.returncode != 0
    run_stage("sft", tmp_path / "killed", *options)
    assert_same_result(tmp_path / "killed" / "sft", tmp_path / "whole" / "sft")
    metrics = manifest(tmp_path / "whole", "sft")["metrics"]
    assert metrics["padding"] < metrics["padding_plain"]
