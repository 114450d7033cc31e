"""`tristage evaluate --benchmarks`: lm-eval on the policies as they are, with the task of the guide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="make test-exports installs it (extra evaluate)")

from apps.evaluate.benchmarks import Benchmarks, load_tasks, run_benchmarks
from apps.evaluate.candidates import parse_candidates
from apps.likelihood import token_logprobs
from apps.trained_run import Adapters, LoadedPolicies, load_policies, open_run, this_process
from configs.errors import UserError
from tests.integration.test_people import tristage
from tests.support.docs_pages import blocks

NAMES = ["base", "sft", "ppo"]
ROWS: list[dict[str, Any]] = [
    {
        "question": f"Is {number} even?",
        "choices": ["Yes, it is.", "No.", "Perhaps it was."],
        "label": number % 2,
    }
    for number in range(12)
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the task of the guide, on questions of this test."""
    (block,) = (block for block in blocks("yaml", "guides/evaluate.md") if block.title == "benchmark")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    text = block.text.replace("/data/capitals.jsonl", str(tmp_path / "data.jsonl"))
    assert text != block.text
    (tasks / "capitals.yaml").write_text(text)
    return tasks


@pytest.fixture(scope="module")
def policies(trained_run: Path) -> LoadedPolicies:
    run = open_run(trained_run)
    adapters = Adapters({"base": None, "sft": run.adapter("sft"), "ppo": run.adapter("ppo")})
    return load_policies(run, adapters, this_process())


def accuracy(policies: LoadedPolicies, name: str) -> float:
    """By this project's own likelihoods: the likeliest answer after a space, as lm-eval joins them."""
    tokenizer, right = policies.tokenizer, 0
    for row in ROWS:
        question = tokenizer(row["question"])["input_ids"]
        pairs = []
        for choice in row["choices"]:
            whole = tokenizer(f"{row['question']} {choice}")["input_ids"]
            pairs.append((whole[: len(question)], whole[len(question) :]))
        rows = token_logprobs(
            policies.models, policies.roles[name], pairs, tokenizer.pad_token_id, this_process().device, 3
        )
        sums = [sum(row) for row in rows]
        right += sums.index(max(sums)) == row["label"]
    return right / len(ROWS)


def test_the_accuracy_of_each_policy_is_that_of_its_likelihoods(policies, folder) -> None:
    wanted = Benchmarks(["capitals"], folder, None, chat=False)
    table = run_benchmarks(policies, parse_candidates([*NAMES, "sft~3"]), wanted, lambda line: None)
    found = table["capitals, acc"]
    assert list(found) == NAMES, "a vote is no policy"
    assert {name: found[name]["score"] for name in NAMES} == {
        name: pytest.approx(accuracy(policies, name)) for name in NAMES
    }
    assert found["ppo"]["score_n"] == 12 and found["ppo"]["score_low"] <= found["ppo"]["score"]


def test_a_part_of_the_examples(policies, folder) -> None:
    wanted = Benchmarks(["capitals"], folder, 5, chat=False)
    table = run_benchmarks(policies, parse_candidates(["base", "sft"]), wanted, lambda line: None)
    assert table["capitals, acc"]["base"]["score_n"] == 5


def test_what_cannot_be_loaded_is_refused(folder, tmp_path) -> None:
    for tasks, where, reason in (
        (["no_such_task"], folder, "lm-eval has no task, group or tag of this name"),
        (["capitals"], tmp_path / "none", "--benchmarks-folder: .*there is no such folder"),
    ):
        with pytest.raises(UserError, match=reason):
            load_tasks(Benchmarks(tasks, where, None, chat=False))
    (tmp_path / "data.jsonl").unlink()
    with pytest.raises(UserError, match="--benchmarks: capitals cannot be loaded: FileNotFoundError"):
        load_tasks(Benchmarks(["capitals"], folder, None, chat=False))


def test_the_command_shows_and_writes_them(trained_run, folder, tmp_path) -> None:
    words = ("--benchmarks", "capitals", "--benchmarks-folder", folder, "-n", 4, "--out", tmp_path / "out")
    shown = tristage(
        "evaluate", "--run-dir", trained_run, "--policies", "base,ppo", "--judges", "warmth", *words
    )
    assert "capitals, acc" in shown
    assert "Benchmarks by lm-eval" in (tmp_path / "out/index.html").read_text()
    figures = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert set(figures["benchmarks"]["capitals, acc"]) == {"base", "ppo"}
