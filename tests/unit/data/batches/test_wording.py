"""How rows of tasks are worded: draws by hash and seed, examples, reasons, labels, and what is refused."""

import json
from collections import Counter
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from configs.errors import UserError
from configs.schema import Experiment
from configs.task_file import read_task
from data.batches import wording
from data.examples import StageData, some_rows
from data.sources.bad_rows import BadRow, LeftOut, UnusableRow
from data.sources.loading import load_rows
from data.sources.tasks import labelled_row
from tests.contract.bad_inputs.entry import check_message
from tests.support.pipeline_runs import toy

TASK: dict[str, Any] = {
    "options": {0: "bad", 1: "good"},
    "templates": [
        {"name": "a", "prompt": "A: {{ text }}"},
        {"name": "b", "prompt": "B: {{ text }} ({{ options | join('/') }})"},
        {"name": "c", "prompt": "C says {{ answer }}:", "completion": "{{ text }}", "inverted": True},
    ],
}
ROWS = [{"text": f"row {n}", "label": n % 2} for n in range(60)]


def ignore(line: str) -> None: ...


def experiment(folder: Path, task: dict[str, Any] = TASK, rows: Any = ROWS, **changes: Any) -> Experiment:
    (folder / "tasks.yaml").write_text(yaml.safe_dump({"tasks": {"t": task}}, allow_unicode=True))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = {"data__sft__path": str(folder / "rows.jsonl"), "data__sft__task": str(folder / "tasks.yaml")}
    return toy(**paths, **changes)


def rows_of(config: Experiment, kind: Any = "demonstrations") -> list[dict[str, Any]]:
    train, held_out, _ = StageData(config, "sft", ignore).rows(kind)
    return [*train, *held_out]


def refusal(config: Experiment, kind: Any = "demonstrations") -> str:
    with pytest.raises(UserError) as caught:
        rows_of(config, kind)
    return str(caught.value)


def test_each_row_has_one_template_by_hash_and_seed(tmp_path):
    config = experiment(tmp_path)
    rows = rows_of(config)
    assert len(rows) == 60 and rows == rows_of(config)
    for row in rows:
        text = row["key"]
        answer = "good" if int(text.split()[1]) % 2 else "bad"
        expected = {
            "a": (f"A: {text}", f" {answer}"),
            "b": (f"B: {text} (bad/good)", f" {answer}"),
            "c": (f"C says {answer}:", f" {text}"),
        }[row["template"]]
        assert (row["prompt"], row["completion"]) == expected
        assert row["where"].endswith(f", template {row['template']}")
    counts = Counter(row["template"] for row in rows)
    assert all(10 <= counts[name] <= 30 for name in "abc")  # 20 are expected of each
    other = {row["key"]: row["template"] for row in rows_of(config.model_copy(update={"seed": 1}))}
    assert any(other[row["key"]] != row["template"] for row in rows)


def test_a_rows_wording_does_not_depend_on_the_other_rows(tmp_path):
    whole = {row["key"]: row for row in rows_of(experiment(tmp_path))}
    part = rows_of(experiment(tmp_path, rows=ROWS[7:30][::-1]))
    assert [row["prompt"] for row in part] == [whole[row["key"]]["prompt"] for row in part]


def test_rows_of_one_input_are_on_one_side_whatever_their_template_and_label(tmp_path):
    """A prompt's template is drawn from the input alone, and so is its side of the split."""
    again = [{"text": f" row  {n} ", "label": 1} for n in range(60)]
    train, held_out, _ = StageData(experiment(tmp_path, rows=[*ROWS, *again]), "sft", ignore).rows(
        "demonstrations"
    )
    assert len(train) == 108 and len(held_out) == 12
    assert not {row["key"] for row in train} & {row["key"] for row in held_out}


def test_in_a_chat_an_answer_has_no_blank_before_it(tmp_path):
    assert all(row["completion"][0] != " " for row in rows_of(experiment(tmp_path, data__chat=True)))


def test_prompts_of_tasks_serve_ppo_and_rankings_are_refused(tmp_path):
    rows = rows_of(experiment(tmp_path), "prompts")
    assert len(rows) == 60 and not any("completion" in row for row in rows)
    assert "rankings need several" in refusal(experiment(tmp_path), "rankings")


def few_shot(folder: Path, **changes: Any) -> Experiment:
    task = {**TASK, "templates": TASK["templates"][:2], "few_shot": {"k": 3, "separator": "\n--\n"} | changes}
    return experiment(folder, task)


def test_examples_are_other_rows_of_the_training_part(tmp_path):
    train, held_out, _ = StageData(few_shot(tmp_path), "sft", ignore).rows("demonstrations")
    learned = {row["key"] for row in train}
    for row in [*train, *held_out]:
        *examples, asked = row["prompt"].split("\n--\n")
        assert len(examples) == len(set(examples)) == 3 and row["key"] in asked
        for example in examples:
            number = int(example.split("row ")[1].split()[0])
            assert f"row {number}" in learned - {row["key"]}
            assert example.startswith(asked[:3])  # the same wording
            assert example.endswith(" good" if number % 2 else " bad")
    assert train[0]["where"].endswith(", 3 examples")


def test_a_share_of_the_rows_has_examples(tmp_path):
    rows = rows_of(few_shot(tmp_path, share=0.5))
    assert 18 <= sum("\n--\n" in row["prompt"] for row in rows) <= 42  # 30 are expected
    assert not any("\n--\n" in row["prompt"] for row in rows_of(few_shot(tmp_path, share=0)))


def test_too_few_rows_for_examples_are_refused(tmp_path):
    task = {**TASK, "few_shot": {"k": 5}}
    message = refusal(experiment(tmp_path, task, ROWS[:6]))
    check_message(
        message, "few_shot.k is 5, and its training part has only 4 other rows", "rows.jsonl, line "
    )


def test_a_reason_stands_before_the_answer_if_the_row_has_one(tmp_path):
    rows = [row | ({"why": f"It is {row['label']}."} if n < 40 else {}) for n, row in enumerate(ROWS)]
    thought = {"column": "why", "cue": "Why?", "conclusion": "So: ", "share": 1}
    task = {**TASK, "templates": TASK["templates"][:1], "chain_of_thought": thought}
    for row in rows_of(experiment(tmp_path, task, rows)):
        number = int(row["key"].split()[1])
        answer = "good" if number % 2 else "bad"
        if number < 40:
            assert row["prompt"] == f"A: row {number}\nWhy?"
            assert row["completion"] == f" It is {number % 2}.\nSo: {answer}"
            assert row["where"].endswith(", with its reason")
        else:
            assert (row["prompt"], row["completion"]) == (f"A: row {number}", f" {answer}")


def test_examples_show_their_reason_if_the_row_does(tmp_path):
    rows = [row | {"rationale": f"Reason {n}."} for n, row in enumerate(ROWS)]
    task = {
        **TASK,
        "templates": TASK["templates"][:1],
        "few_shot": {"k": 2},
        "chain_of_thought": {"share": 0.5},
    }
    for row in rows_of(experiment(tmp_path, task, rows)):
        own = row["completion"].count("Reason ")
        assert row["prompt"].count("Reason ") == 2 * own and row["prompt"].count("Think step") == 3 * own


CHINESE = {"cue": "请一步一步地思考。", "conclusion": "所以答案是："}


@pytest.mark.parametrize("language", ["zh", "zh-CN", "zh_TW"])
def test_a_chinese_task_has_chinese_cues_unless_it_gives_others(tmp_path, language):
    """A reason begins a line: Chinese has no blank that parts it from the cue."""
    rows = [row | {"rationale": f"理由{n}。"} for n, row in enumerate(ROWS)]
    task = {**TASK, "templates": TASK["templates"][:1], "language": language, "few_shot": {"k": 1}}
    for thought, cues in (({}, CHINESE), ({"cue": "请思考。"}, {**CHINESE, "cue": "请思考。"})):
        for row in rows_of(experiment(tmp_path, {**task, "chain_of_thought": {**thought, "share": 1}}, rows)):
            number = int(row["key"].split()[1])
            answer = "good" if number % 2 else "bad"
            assert f"\n{cues['cue']}\n理由" in row["prompt"] and row["prompt"].endswith(f"\n{cues['cue']}")
            assert row["completion"] == f"\n理由{number}。\n{cues['conclusion']}{answer}"


def test_a_turn_of_a_chat_does_not_begin_with_the_line_break_of_a_reason(tmp_path):
    rows = [row | {"rationale": f"理由{n}。"} for n, row in enumerate(ROWS)]
    task = {**TASK, "templates": TASK["templates"][:1], "language": "zh", "chain_of_thought": {"share": 1}}
    assert all(
        row["completion"].startswith("理由")
        for row in rows_of(experiment(tmp_path, task, rows, data__chat=True))
    )


def test_columns_are_read_under_the_names_of_the_templates(tmp_path):
    source = {
        "path": "rows.jsonl",
        "columns": {"text": "sentence", "label": "gold"},
        "ignore_columns": ["extra"],
    }
    rows = [{"sentence": row["text"], "gold": row["label"], "extra": 1} for row in ROWS]
    assert rows_of(experiment(tmp_path, {**TASK, "source": source}, rows)) == rows_of(experiment(tmp_path))


def test_some_rows_of_a_large_source_are_worded_too(tmp_path):
    assert {row["prompt"] for row in some_rows(experiment(tmp_path), "sft", "demonstrations")} == {
        row["prompt"] for row in rows_of(experiment(tmp_path))
    }


def test_a_held_out_task_is_not_trained_on(tmp_path):
    message = refusal(experiment(tmp_path, {**TASK, "held_out": "all"}))
    check_message(message, "data.sft.task: ", "is held out", "tristage evaluate --tasks")


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
ESCAPE = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
TEMPLATE_FAULTS = [
    ("{{ text.nothing }}", "has no attribute 'nothing'", "line 1"),
    ("{{ text }}" + ESCAPE, "unsafe", "line 1"),
    ("{% if text != 'row 9' %}{{ text }}{% endif %}", "renders to nothing", "line 10"),
    ("{{ text[:4] }}", "the prompt is the same as that of", "line 2"),
    ("{{ text * 10000000 }}", "characters of a short", "line 1"),
    ("{% if text == 'row 4' %}" + LOOP + "{% endif %}{{ text }}", "more than 5 seconds", "line 5"),
]


@pytest.mark.parametrize(("prompt", "part", "line"), TEMPLATE_FAULTS)
def test_a_template_that_fails_is_refused_by_row_and_name(tmp_path, prompt, part, line):
    task = {**TASK, "templates": [{"name": "odd", "prompt": prompt}]}
    message = refusal(experiment(tmp_path, task, ROWS[:20], data__sft__held_out=0))
    check_message(message, f"rows.jsonl, {line}, template odd: task t: ", part)


ROW_FAULTS = [
    ({"text": "a"}, BadRow, "it has no `label`"),
    ({"label": 0}, BadRow, "it has no `text`"),
    ({"text": None, "label": 0}, BadRow, "it has no `text`"),
    ({"text": "a", "label": 2}, BadRow, "`label` is 2, and t knows the labels `0`, `1`"),
    ({"text": "a", "label": "good "}, BadRow, "`label` is 'good '"),
    ({"text": "a", "label": [0]}, BadRow, "`label` is [0]"),
    ({"text": "a", "label": 0, "score": 1}, BadRow, "`score` has no place in the templates of t"),
    ({"text": "a", "label": 0, "answer": "x"}, BadRow, "`answer` has no place"),
    ({"text": " ", "label": 0}, UnusableRow, "`text` show nothing"),
    ({"text": "\0", "label": 0}, UnusableRow, "a NUL character"),
    ({"text": "\ud800", "label": 0}, BadRow, "surrogate"),
    ({"text": date(2024, 1, 2), "label": 0}, BadRow, "`text` is no text, number, list or object: datetime"),
    ({"text": [b"a"], "label": 0}, BadRow, "`text` is no text, number, list or object: [b'a']"),
    ({"text": "a", "label": Decimal(0)}, BadRow, "`label` is no text, number, list or object: Decimal"),
    ({"text": "a", "label": -1}, LeftOut, "`label` is -1, which `ignore_labels` names"),
]


@pytest.mark.parametrize(("row", "kind", "part"), ROW_FAULTS)
def test_a_row_is_refused_by_its_column(tmp_path, row, kind, part):
    config = experiment(tmp_path, {**TASK, "ignore_labels": [-1]})
    with pytest.raises(BadRow) as caught:
        labelled_row(row, read_task(str(config.data.sources("sft")[0].task), "k"))
    assert type(caught.value) is kind and part in str(caught.value)


def test_a_column_that_no_template_reads_may_hold_anything(tmp_path):
    config, rows = experiment(tmp_path), [{**row, "date": date(2024, 1, 2), "id": b"7"} for row in ROWS]
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    source = config.data.sources("sft")[0].model_copy(update={"path": str(file)})
    notes: list[str] = []
    read = load_rows(source, "demonstrations", notes.append).rows
    assert "date" not in read[0]["labelled"].values and notes == [f"{file}: not read: `date`"]


def test_a_bad_row_is_named_by_file_and_line(tmp_path):
    message = refusal(experiment(tmp_path, rows=[*ROWS[:2], {"text": "a", "label": 7}]))
    check_message(message, "rows.jsonl: 1 of 3 rows cannot serve as demonstrations", "line 3: `label` is 7")


@pytest.mark.parametrize(
    ("label", "answer"), [(0, "no"), ("1", "yes"), (1.0, "yes"), ("yes", "yes"), ("no", "no")]
)
def test_options_of_a_list_are_named_by_number_or_text(tmp_path, label, answer):
    config = experiment(tmp_path, {**TASK, "options": ["no", "yes"]})
    row = labelled_row({"text": "a", "label": label}, read_task(str(config.data.sources("sft")[0].task), "k"))
    assert row["labelled"].answer == answer


def test_a_row_may_have_options_of_its_own():
    task = read_task("classification", "k")
    row = labelled_row({"text": "a", "choices": ["x", "y"], "label": 1}, task)["labelled"]
    assert row.answer == "y" and row.answering("x")["answer"] == "x"
    for choices in (["x"], ["x", "x"], ["x", ""], "x", ["x", 1]):
        with pytest.raises(BadRow, match="choices"):
            labelled_row({"text": "a", "choices": choices, "label": "x"}, task)


def test_the_worker_is_asked_for_many_texts_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(wording, "AT_ONCE", 7)
    small = rows_of(experiment(tmp_path))
    monkeypatch.undo()
    assert small == rows_of(experiment(tmp_path))
