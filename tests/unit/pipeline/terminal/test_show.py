"""What `tristage plan` says about steps and batch sizes."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

from rich.console import Console

from pipeline.state.manifest import Status
from pipeline.state.run_directory import RunDirectory
from pipeline.terminal.show import print_batches, print_status
from tests.support.pipeline_runs import toy, write_stage


def printed(**changes: object) -> str:
    console = Console(width=160, file=StringIO())
    print_batches(console, toy(**changes), ["sft", "rm", "ppo"], 1)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_few_steps_are_warned_about_before_they_train(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"p {n}", "completion": "a"}) + "\n" for n in range(40)))
    few = printed(data__sft={"path": str(rows), "held_out": 4}, sft__batch_size=32, sft__epochs=1)
    assert "warning: stage sft will make about 1 optimizer step: its result will show little" in few
    enough = printed(data__sft={"path": str(rows), "held_out": 4}, sft__batch_size=4, sft__epochs=1)
    assert "stage sft will make" not in enough
    assert "warning: stage ppo will make about 2 iterations" in printed(ppo__iterations=2)


def test_the_first_row_says_how_many_answers_a_ranking_has(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "p", "completions": ["a", "b", "c"]}) + "\n")
    text = printed(data__rm={"path": str(rows), "held_out": 0})
    assert "rm: counted for 3 completions a prompt; the data decide" in text


def test_the_status_counts_the_runs_of_a_sweep(tmp_path: Path) -> None:
    write_stage(tmp_path, "sft")
    console = Console(width=160, file=StringIO())
    print_status(console, RunDirectory(tmp_path))
    assert "sweep" not in console.file.getvalue()  # type: ignore[attr-defined]
    ended: list[Status] = ["finished", "finished", "failed"]
    for seed, status in enumerate(ended):
        write_stage(tmp_path / "sweep" / f"seed={seed}", "ppo", status)
    (tmp_path / "sweep" / "seed=3").mkdir()  # it waits
    print_status(console, RunDirectory(tmp_path))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"sweep: runs of ppo in {tmp_path}/sweep: finished 2, failed 1" in text
