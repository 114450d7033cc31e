"""Labelled tasks that `tristage plan` refuses before anything trains."""

from __future__ import annotations

import json

import pytest

from tests.contract.bad_inputs.entry import SHORT, VALID, check_message, experiment, tristage

pytestmark = pytest.mark.usefixtures("material_checks")
GOOD = "tasks:\n  t:\n    options: [bad, good]\n    templates: [{name: a, prompt: 'A: {{ text }}'}]\n"
ROWS = [{"text": f"row {n}", "label": n % 2} for n in range(30)]
CASES = [
    (
        "task: tasks.yaml",
        GOOD,
        [*ROWS, {"text": "x", "label": 9}],
        "sft.jsonl: 1 of 31 rows",
        "line 31: `label` is 9",
    ),
    ("task: tasks.yaml", GOOD, [{"label": 0}], "line 1: it has no `text`", "say which columns they need"),
    (
        "task: tasks.yaml",
        GOOD,
        [{**ROWS[0], "score": 1}],
        "`score` has no place in the templates of t",
        "by `columns` of",
    ),
    ("task: tasks.yaml:u", GOOD, ROWS, "tasks.yaml has no task 'u'. It has t"),
    ("task: other.yaml", GOOD, ROWS, "data.sft.task: ", "other.yaml: cannot be read: No such file"),
    ("task: 'no'", GOOD, ROWS, "'no' is no pool that ships"),
    ("task: nli", GOOD, ROWS, "`text` has no place in the templates of nli"),
    (
        "task: tasks.yaml",
        GOOD + "    held_out: all\n",
        ROWS,
        "data.sft.task: ",
        "is held out",
        "so no stage may train",
    ),
    (
        "task: tasks.yaml",
        GOOD + "    few_shot: {k: 60}\n",
        ROWS,
        "few_shot.k is 60, and its training part has only 26",
    ),
    (
        "task: tasks.yaml",
        GOOD.replace("{{ text }}", "{{ text.b }}"),
        ROWS,
        "line 1, template a: task t: ",
        "attribute 'b'",
    ),
    (
        "task: tasks.yaml",
        GOOD.replace("{{ text }}", "{{ text[:3] }}"),
        ROWS,
        "the prompt is the same as that of",
    ),
    (
        "task: tasks.yaml",
        GOOD.replace("A: {{ text }}", "{{ label }}"),
        ROWS,
        "templates[0] (a): its prompt shows the answer",
    ),
]


@pytest.mark.parametrize(("source", "tasks", "rows", "parts"), [(*case[:3], case[3:]) for case in CASES])
def test_a_task_is_refused_before_anything_trains(tmp_path, source, tasks, rows, parts):
    file = experiment(
        tmp_path, VALID.replace("sft: {path: sft.jsonl}", f"sft: {{path: sft.jsonl, {source}}}")
    )
    (tmp_path / "tasks.yaml").write_text(tasks)
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, stdout, stderr = tristage("plan", "--config", file, "--run-dir", tmp_path / "run", *SHORT)
    assert status == 2 and "Traceback" not in stdout and not (tmp_path / "run").exists()
    check_message(stderr, *parts)
