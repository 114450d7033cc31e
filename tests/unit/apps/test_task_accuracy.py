"""Accuracy on labelled tasks: computed by hand from log-probabilities that the test chooses."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from apps.evaluate import tasks
from apps.evaluate.task_output import build_page, print_tasks, write_tasks
from apps.evaluate.tasks import MEAN, SUM, TaskResult, TaskRows, measure_task, task_rows
from apps.likelihood import option_logprobs, token_logprobs
from apps.trained_run import TrainedRun
from configs.errors import UserError
from data.sources.tasks import labelled_row
from pipeline.reporting.page import render
from pipeline.state.run_directory import RunDirectory
from pipeline.terminal.console import SafeConsole
from tests.contract.bad_inputs.entry import check_message
from tests.support.pipeline_runs import toy, write_stage
from tests.support.roles import CPU, new_role, tiny_roles

TASK = {
    "options": ["no", "perhaps so"],
    "templates": [
        {"name": "a", "prompt": "A: {{ text }}"},
        {"name": "b", "prompt": "B: {{ text }}"},
        {"name": "inverted", "prompt": "{{ answer }}", "completion": "{{ text }}", "inverted": True},
    ],
}


def ignore(line: str) -> None: ...


def write(folder: Path, rows: Sequence[dict[str, Any]], **changes: Any) -> str:
    task = {**TASK, "source": {"path": "rows.jsonl"}, **changes}
    (folder / "tasks.yaml").write_text(yaml.safe_dump({"tasks": {"t": task}}))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "tasks.yaml")


def given(folder: Path, labels: Sequence[int]) -> TaskRows:
    rows = [{"text": f"row {n}", "label": label} for n, label in enumerate(labels)]
    (task,) = tasks.read_tasks(write(folder, rows), "--tasks")
    read = [{**labelled_row(row, task), "where": f"line {n}"} for n, row in enumerate(rows, 1)]
    return TaskRows(task, read)


def measured(monkeypatch: Any, tokenizer: Any, rows: TaskRows, rule: Any, context: int = 200) -> TaskResult:
    """The result if `rule(policy, prompt, option)` is the log-probability of each token of an option."""

    def logprobs(models: Any, role: str, rows: Any, pad: int, device: Any, at_once: int) -> list[Any]:
        decode = tokenizer.decode
        return [
            [[rule(role, decode(prompt), decode(option))] * len(option) for option in options]
            for prompt, options in rows
        ]

    monkeypatch.setattr(tasks, "option_logprobs", logprobs)
    monkeypatch.setattr(tasks, "supports_block_mask", lambda base: True)
    policies: Any = SimpleNamespace(
        tokenizer=tokenizer,
        roles={"base": "base", "sft": "sft"},
        models=None,
        base=SimpleNamespace(causal=SimpleNamespace(device="cpu")),
    )
    return measure_task(policies, ["base", "sft"], rows, toy().data, context)


def test_the_longer_option_only_wins_if_its_length_does_not_count(tmp_path, monkeypatch, tiny_tokenizer):
    """A token of "no" has -1.0, one of "perhaps so" -0.9: the sum prefers the first, the mean the second."""
    rows = given(tmp_path, [0, 0, 0, 1])
    result = measured(
        monkeypatch, tiny_tokenizer, rows, lambda *text: -1.0 if text[2].strip() == "no" else -0.9
    )
    assert list(result.accuracy["base"]) == ["", "a", "b"]  # the inverted one asks for something else
    for figures in result.accuracy["base"].values():
        assert (figures[SUM]["value"], figures[MEAN]["value"]) == (0.75, 0.25)
        assert figures[SUM]["n"] == 4
    assert result.gain["sft"][SUM] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 4}
    assert (result.majority["value"], result.majority_answer, result.chance) == (0.75, "no", 0.5)


def test_a_row_counts_the_share_of_templates_that_it_is_answered_right_with(
    tmp_path, monkeypatch, tiny_tokenizer
):
    """SFT is right with template a only; base answers "no" to all. Two of four rows are "no"."""

    def rule(role: str, prompt: str, option: str) -> float:
        right = "perhaps so" if prompt.strip()[-1] in "13" else "no"
        chosen = right if role == "sft" and prompt.strip().startswith("A") else "no"
        return -0.1 if option.strip() == chosen else -5.0

    result = measured(monkeypatch, tiny_tokenizer, given(tmp_path, [0, 1, 0, 1]), rule)
    base, sft = result.accuracy["base"], result.accuracy["sft"]
    assert [base[name][SUM]["value"] for name in ("", "a", "b")] == [0.5, 0.5, 0.5]
    assert [sft[name][SUM]["value"] for name in ("", "a", "b")] == [0.75, 1.0, 0.5]
    assert result.spread("sft", SUM) == (0.5, 1.0)
    # Of each row, the gain is 0, 0.5, 0, 0.5.
    gain = result.gain["sft"][SUM]
    assert gain["value"] == 0.25 and gain["low"] == 0.0 and gain["high"] == 0.5


def test_rows_beyond_the_context_are_left_out_and_counted(tmp_path, monkeypatch, tiny_tokenizer):
    rows = given(tmp_path, [0, 1, 0])
    rows.rows[0]["labelled"].values["text"] = "word " * 100
    result = measured(monkeypatch, tiny_tokenizer, rows, lambda *text: -1.0, context=60)
    assert result.majority["n"] == 2 and result.notes == ["t: 1 rows exceed 60 tokens; left out."]
    with pytest.raises(UserError, match="none of its rows fits into 3 tokens"):
        measured(monkeypatch, tiny_tokenizer, rows, lambda *text: -1.0, context=3)


def test_the_page_and_the_table_have_each_policy_and_template(tmp_path, monkeypatch, tiny_tokenizer):
    result = measured(monkeypatch, tiny_tokenizer, given(tmp_path, [0, 0, 1]), lambda *text: -1.0)
    page = render(build_page([result], "Tasks"), "md")
    for part in ("base", "sft", "always 'no'", "guessing", "0.667", "Over templates", "| a |"):
        assert part in page
    write_tasks([result], tmp_path / "out", "Tasks")
    (found,) = json.loads((tmp_path / "out" / "tasks.json").read_text())
    assert found["accuracy"]["sft"][SUM]["n"] == 3 and set(found["templates"]["base"]) == {"a", "b"}
    console = SafeConsole(width=200, record=True)
    print_tasks(console, [result])
    assert "t: 3 rows, 2 templates" in console.export_text()


def run_with(folder: Path, **changes: Any) -> TrainedRun:
    """A run whose SFT has finished, as far as the rows of tasks are concerned."""
    config = toy(**changes)
    return TrainedRun(RunDirectory(folder), config, {"sft": write_stage(folder, "sft", config=config)})


ROWS = [{"text": f"row {n}", "label": n % 2} for n in range(40)]


def test_rows_that_the_run_was_trained_on_are_left_out(tmp_path):
    """Of a task that SFT learns, only what it holds out is asked."""
    reference = write(tmp_path, ROWS)
    paths = {"data__sft__path": str(tmp_path / "rows.jsonl"), "data__sft__task": reference}
    trained = run_with(tmp_path, **paths, data__sft__held_out=10)
    (found,) = task_rows(trained, [reference], None, ignore)
    assert len(found.rows) == 10 and found.notes == [
        "t: 30 of 40 rows left out: the run was trained on them."
    ]
    (some,) = task_rows(trained, [reference], 4, ignore)
    assert [row["key"] for row in some.rows] == [row["key"] for row in found.rows][:4]


def test_a_held_out_task_is_asked_as_a_whole(tmp_path):
    (tmp_path / "plain.jsonl").write_text("".join(f'{{"text": "text {n}"}}\n' for n in range(20)))
    reference = write(tmp_path, ROWS, held_out="all")
    run = run_with(tmp_path, data__sft__path=str(tmp_path / "plain.jsonl"))
    (found,) = task_rows(run, [reference], None, ignore)
    assert len(found.rows) == 40 and found.task.held_out == "all" and found.notes == []


def test_a_pool_that_ships_is_asked_on_a_file(tmp_path):
    (tmp_path / "plain.jsonl").write_text("".join(f'{{"text": "text {n}"}}\n' for n in range(20)))
    file = tmp_path / "nli.jsonl"
    rows = [{"premise": f"It is {n}.", "hypothesis": "It is.", "label": n % 3} for n in range(5)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = task_rows(
        run_with(tmp_path, data__sft__path=str(tmp_path / "plain.jsonl")), [f"nli={file}"], 3, ignore
    )
    assert len(found.rows) == 3 and len(found.templates) == 6


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"options": None}, ("--tasks: t has no options to choose from",)),
        ({"source": None}, ("--tasks: the task t does not say where its rows are",)),
        ({"source": {"path": "none.jsonl"}}, ("none.jsonl: there is no such file",)),
    ],
)
def test_a_task_that_cannot_be_asked_is_refused(tmp_path, changes, parts):
    (tmp_path / "plain.jsonl").write_text("".join(f'{{"text": "text {n}"}}\n' for n in range(20)))
    reference = write(tmp_path, ROWS, **changes)
    with pytest.raises(UserError) as refusal:
        task_rows(
            run_with(tmp_path, data__sft__path=str(tmp_path / "plain.jsonl")), [reference], None, ignore
        )
    check_message(str(refusal.value), *parts)


def test_a_task_of_which_all_rows_were_trained_on_is_refused(tmp_path):
    reference = write(tmp_path, ROWS)
    paths = {"data__sft__path": str(tmp_path / "rows.jsonl"), "data__sft__task": reference}
    with pytest.raises(UserError, match="the run was trained on its rows"):
        task_rows(run_with(tmp_path, **paths, data__sft__held_out=0), [reference], None, ignore)


def test_options_that_share_a_prompt_have_the_log_probabilities_that_each_has_alone():
    """Read together, with the prompt once, and apart, by the function that samples are measured with."""
    roles = new_role(tiny_roles(), "policy", 1).eval()
    rows = [([1, 5, 9, 3], [[7], [8, 2, 6], [7, 4]]), ([2], [[3], [4, 4]]), ([6, 6, 6], [[1, 2], [2, 1]])]
    together = option_logprobs(roles, "policy", rows, 0, CPU, 2)
    pairs = [(prompt, option) for prompt, options in rows for option in options]
    apart = iter(token_logprobs(roles, "policy", pairs, 0, CPU, 3))
    for (_, options), found in zip(rows, together, strict=True):
        assert [len(one) for one in found] == [len(option) for option in options]
        for one in found:
            assert one == pytest.approx(next(apart), abs=1e-4)
