"""Rows of metrics, samples and answers with values of other types: the report names the row."""

from __future__ import annotations

import json

import pytest

from tests.contract.bad_inputs.entry import check_message, tristage
from tests.support.finished_run import Run

SAMPLE = {"step": 1, "prompt": "p", "response": "r"}
ANSWERS = {"prompt": "p", "base": "a", "sft": "b", "ppo": "c"}
RANKING = {"prompt": "p", "completions": ["x", "y"], "ranks": [0, 1]}
ROWS = [
    *(("sft/metrics.jsonl", {"step": step, "loss": 1.0}, "step") for step in ("x", None, 1.5, True, [1])),
    *(("rm/metrics.jsonl", {"step": 1, "loss": loss}, "loss") for loss in ("x", [1], {"a": 1}, True)),
    ("ppo/metrics.jsonl", {"step": 1, "objective/kl": 10**400}, "objective/kl"),
    ("ppo/metrics.jsonl", {"loss": 1.0}, "without step"),
    ("ppo/samples.jsonl", SAMPLE | {"response": None}, "response"),
    ("ppo/samples.jsonl", SAMPLE | {"score": "x"}, "score"),
    ("ppo/evaluation.jsonl", ANSWERS | {"ppo": ["c"]}, "ppo"),
    ("ppo/evaluation.jsonl", ANSWERS | {"gold_ppo": "x"}, "gold_ppo"),
    ("ppo/evaluation.jsonl", ANSWERS | {"kl": []}, "kl"),
    ("rm/rankings.jsonl", RANKING | {"completions": "xy"}, "completions"),
    ("rm/rankings.jsonl", RANKING | {"ranks": ["a", "b"]}, "ranks"),
    ("rm/rankings.jsonl", RANKING | {"ranks": [0]}, "as many ranks"),
    ("rm/rankings.jsonl", RANKING | {"scores": ["z", 1.0]}, "scores"),
    ("rm/rankings.jsonl", RANKING | {"scores": [1.0]}, "as many ranks"),
    ("rm/rankings.jsonl", RANKING | {"prompt": []}, "prompt"),
    ("rm/rankings.jsonl", RANKING | {"prompt": [{"role": 1}]}, "prompt"),
    ("best/curve.jsonl", {"n": "x", "kl": 0.0, "rm_score": 1.0}, "n"),
    ("best/curve.jsonl", {"n": 1, "kl": None, "rm_score": 1.0}, "kl"),
    ("best/curve.jsonl", {"n": 1, "kl": 0.0, "rm_score": 1.0, "gold": "y"}, "gold"),
]


@pytest.mark.parametrize(("name", "row", "part"), ROWS, ids=lambda value: str(value)[:40])
def test_a_value_of_another_type(name, row, part, tmp_path):
    Run(tmp_path / "run").complete().stage("best")
    file = tmp_path / "run" / name
    file.write_text(json.dumps(row) + "\n" + (file.read_text() if file.exists() else ""))
    status, _, err = tristage("report", "--run-dir", tmp_path / "run")
    assert status == 2
    check_message(err, f"error: {file}, line 1: damaged (", part, "Remove the line")
