"""Labelling rounds that somebody edited or damaged, and rankings of another policy than the present one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from configs.errors import UserError
from data.people.events import AnyEvent, Shown, Submitted
from data.people.round import KINDS, LABELS, Kind, Settings, Task, create_round, read_round, task_id
from data.storage.source_digest import source_digest
from pipeline.planning.plan import plan_stage
from tests.contract.bad_inputs.entry import check_message, tristage
from tests.support.pipeline_runs import request, toy, write_stage

ANSWERS = ("a", "b")
TASK = Task(id=task_id("p", ANSWERS), prompt="p", completions=ANSWERS)
SHOWN = Shown(showing="s", task=TASK.id, labeller="anna", order=(0, 1))
GIVEN: dict[Kind, dict[str, Any]] = {
    "rankings": {"ranks": (0, 1)},
    "pairs": {"ranks": (0, 1)},
    "ratings": {"rating": 7},
    "demonstrations": {"text": "t"},
}


def a_round(folder: Path, kind: Kind = "rankings", **settings: Any) -> Path:
    """A round with one task."""
    wanted = {"kind": kind, "run": "toy", "answers": 2, "policies": ("sft",), "prompts": "data.rm"} | settings
    create_round(folder, Settings.model_validate(wanted), [TASK])
    return folder


def write_events(folder: Path, *events: AnyEvent) -> None:
    (folder / LABELS).write_text("".join(event.model_dump_json(exclude_none=True) + "\n" for event in events))


def submitted(**given: Any) -> Submitted:
    return Submitted(showing="s", submission="1", seconds=1, **given)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_an_answer_to_another_kind_of_task(kind: Kind, other: Kind, tmp_path: Path) -> None:
    """A rating that is missing would count as 0."""
    write_events(a_round(tmp_path, kind), SHOWN, submitted(**GIVEN[other]))
    if GIVEN[kind] == GIVEN[other]:
        assert read_round(tmp_path).labels.events == 2
        return
    with pytest.raises(UserError) as caught:
        read_round(tmp_path)
    needs = f"line 2: damaged (a round of {kind} needs `{next(iter(GIVEN[kind]))}` and nothing else)"
    check_message(str(caught.value), str(tmp_path / LABELS), needs)


EVENTS: dict[str, tuple[Mapping[str, Any], str]] = {
    "no answer": ({}, "needs `ranks` and nothing else"),
    "two answers": ({"ranks": (0, 1), "rating": 3}, "needs `ranks` and nothing else"),
    "too few ranks": ({"ranks": (0,)}, "1 ranks for 2 answers"),
    "no ranks": ({"ranks": ()}, "0 ranks for 2 answers"),
}


@pytest.mark.parametrize("name", EVENTS)
def test_a_label_that_is_not_of_its_task(name: str, tmp_path: Path) -> None:
    given, part = EVENTS[name]
    write_events(a_round(tmp_path), SHOWN, submitted(**given))
    with pytest.raises(UserError) as caught:
        read_round(tmp_path)
    check_message(str(caught.value), "line 2: damaged (", part)


@pytest.mark.parametrize("place", [os.mkfifo, os.mkdir])
def test_no_file_of_labels(place: Any, tmp_path: Path) -> None:
    write_stage(tmp_path / "run", "sft")
    folder = a_round(tmp_path / "run" / "people" / "rankings")
    place(folder / LABELS)
    status, _, error = tristage("collect", "report", "--run-dir", tmp_path / "run")
    assert status == 2
    check_message(error, f"{folder / LABELS}: cannot be read", "Restore the file.")


def test_prompts_that_changed_since_the_round_began_are_told(tmp_path: Path) -> None:
    config, file = toy(rm__rankings__labeller="people"), tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "p"}\n')
    write_stage(tmp_path, "sft")
    sources = {str(file): source_digest(file)}
    folder = a_round(tmp_path / "people" / "rankings", sources=sources)
    write_events(folder, SHOWN, submitted(ranks=(0, 1)))
    assert plan_stage(request(tmp_path, config), "rm").notes == ()
    file.write_text('{"prompt": "another"}\n')
    notes = "\n".join(plan_stage(request(tmp_path, config), "rm").notes)
    check_message(notes, f"people rank answers to prompts as they were before {file} changed ({folder})")


def test_answers_of_an_earlier_policy_are_told(tmp_path: Path) -> None:
    """Rankings of what SFT said before it was trained again are no rankings of the present one."""
    config = toy(rm__rankings__labeller="people")
    manifest = write_stage(tmp_path, "sft")
    assert manifest.output is not None
    folder = a_round(tmp_path / "people" / "rankings", adapters={"sft": manifest.output.sha256})
    write_events(folder, SHOWN, submitted(ranks=(0, 1)))
    assert plan_stage(request(tmp_path, config), "rm").notes == ()
    settings = json.loads((folder / "round.json").read_text())
    (folder / "round.json").write_text(json.dumps(settings | {"adapters": {"sft": "0" * 64}}))
    plan = plan_stage(request(tmp_path, config), "rm")
    assert plan.action == "run"
    check_message(
        "\n".join(plan.notes), f"people rank answers of an earlier SFT policy than the present one ({folder})"
    )
