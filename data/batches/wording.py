"""Word the rows of labelled tasks as instructions: one template for each row, drawn by hash and seed.

FLAN (Wei et al. 2021), T0 (Sanh et al. 2021), and Chung et al. 2022, who mix prompts with and without
examples and reasons. What a row becomes depends on the seed, the row, and the rows that are its examples.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from configs.errors import UserError
from configs.schema import Data
from configs.task_pool import Task, Template
from data.batches.template_process import JobFault, render_jobs
from data.batches.tokenize import continuation
from data.sources.formats import Kind, Row
from data.sources.tasks import Labelled
from data.sources.text import is_blank, shown
from data.sources.unit import unit

AT_ONCE = 200  # texts in one request to the process that renders
Job = tuple[str, Labelled]  # a template, and the row that it sees


@dataclass(frozen=True)
class Form:
    """How one row is worded: its template, the rows in front of it, and whether the reason is shown."""

    template: Template
    examples: tuple[Labelled, ...] = ()
    with_reason: bool = False

    def named(self, where: str) -> str:
        """The name of the row in messages and previews."""
        count = len(self.examples)
        examples = f", {count} example{'s' * (count > 1)}" if count else ""
        return f"{where}, template {self.template.name}{examples}{', with its reason' * self.with_reason}"


def worded(
    train: Sequence[Row], held_out: Sequence[Row], kind: Kind, data: Data, seed: int
) -> tuple[list[Row], list[Row]]:
    """The rows of a stage with texts: `prompt`, `completion`, `template`. Rows of no task stay as they are.

    Examples are rows of the training part, and never the row itself.

    Raises:
        UserError: a template fails on a row, its text is empty, or is the same for different rows.
    """
    rows = [*train, *held_out]
    if not any("labelled" in row for row in rows):
        return list(train), list(held_out)
    others = {task: _distinct(train, task) for task in {_task(row) for row in rows if "labelled" in row}}
    names = {task: list(found) for task, found in others.items()}
    forms = {
        i: _form(row, others[_task(row)], names[_task(row)], seed)
        for i, row in enumerate(rows)
        if "labelled" in row
    }
    texts = _Texts(rows, forms)
    done = [_worded(row, forms[i], texts, kind, data) if i in forms else row for i, row in enumerate(rows)]
    _check_different(
        [row for i, row in enumerate(done) if i in forms], [rows[i] for i in forms], texts, forms
    )
    return done[: len(train)], done[len(train) :]


def _task(row: Row) -> int:
    """What tells the task of a source apart: two files may have tasks of one name."""
    return id(row["labelled"].task)


def _distinct(rows: Sequence[Row], task: int) -> dict[str, Labelled]:
    """The first training row of each key of a task."""
    found: dict[str, Labelled] = {}
    for row in rows:
        if "labelled" in row and _task(row) == task:
            found.setdefault(row["key"], row["labelled"])
    return found


def _form(row: Row, others: Mapping[str, Labelled], names: Sequence[str], seed: int) -> Form:
    """The form of a row, with examples from `others`, whose keys are `names`."""
    labelled, key = row["labelled"], row["key"]
    task: Task = labelled.task
    template = draw(task.templates, seed, f"{task.name}\n{key}")
    thought, shots = task.chain_of_thought, task.few_shot
    purpose = f"{task.name} form"
    with_reason = (
        thought is not None
        and bool(labelled.reason)
        and not template.inverted
        and unit(seed, f"{purpose} reason", key) < thought.share
    )
    if not shots.k or unit(seed, f"{purpose} examples", key) >= shots.share:
        return Form(template, (), with_reason)
    if (count := len(others) - (key in others)) < shots.k:
        raise UserError(
            f"{row['where']}: task {task.name}: few_shot.k is {shots.k}, and its training part has only "
            f"{count} other rows. Lower it, or give more rows."
        )
    keys = random.Random(f"{seed} {purpose} {key}").sample(names, min(len(names), shots.k + 1))
    chosen = [other for other in keys if other != key][: shots.k]
    return Form(template, tuple(others[other] for other in chosen), with_reason)


def draw(templates: Sequence[Template], seed: int, key: str) -> Template:
    """The template of a row."""
    return templates[int(unit(seed, "template", key) * len(templates))]


class _Texts:
    """The rendered texts of all rows and their examples: `texts[template, row]`."""

    def __init__(self, rows: Sequence[Row], forms: Mapping[int, Form]) -> None:
        wanted: dict[tuple[str, int], tuple[Job, str]] = {}
        for i, form in forms.items():
            for labelled in (rows[i]["labelled"], *form.examples):
                for text in (form.template.prompt, form.template.completion):
                    where = form.named(rows[i]["where"])
                    wanted.setdefault((text, id(labelled)), ((text, labelled), where))
        texts = render([job for job, _ in wanted.values()], [where for _, where in wanted.values()])
        self._texts = dict(zip(wanted, texts, strict=True))

    def prompt(self, template: Template, labelled: Labelled) -> str:
        return self._texts[template.prompt, id(labelled)]

    def completion(self, template: Template, labelled: Labelled) -> str:
        return self._texts[template.completion, id(labelled)]


def render(jobs: Sequence[Job], where: Sequence[str], values: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """The text of each job, without blanks at its ends.

    Args:
        where: the name of each job's row in messages.
        values: what each template sees, if not the values of its row.

    Raises:
        UserError: a template fails, or its text is empty.
    """
    texts: list[str] = []
    seen = values or [labelled.values for _, labelled in jobs]
    for first in range(0, len(jobs), AT_ONCE):
        try:
            texts += _rendered(
                [job for job, _ in jobs[first : first + AT_ONCE]], seen[first : first + AT_ONCE]
            )
        except JobFault as fault:
            template, labelled = jobs[first + fault.job]
            raise UserError(
                f"{where[first + fault.job]}: task {labelled.task.name}: the template {shown(template)} "
                f"failed on it: {fault!s:.200}. Correct the template or the row."
            ) from None
    for text, place, job in zip(texts, where, jobs, strict=True):
        if is_blank(text):
            raise UserError(
                f"{place}: task {job[1].task.name}: {shown(job[0])} renders to nothing. Correct the "
                "template, or remove the row."
            )
    return [text.strip() for text in texts]


def _rendered(templates: Sequence[str], values: Sequence[Mapping[str, Any]]) -> list[str]:
    """One text for each template and what it sees. Raises JobFault with the place of the one that fails."""
    different = list(dict.fromkeys(templates))
    return render_jobs(different, values, [(different.index(text), i) for i, text in enumerate(templates)])


def _worded(row: Row, form: Form, texts: _Texts, kind: Kind, data: Data) -> Row:
    labelled = row["labelled"]
    parts = [_example(each, form, texts, data) for each in form.examples]
    prompt, completion = _pair(labelled, form, texts, form.with_reason)
    whole = labelled.task.few_shot.separator.join([*parts, prompt])
    kept = {key: value for key, value in row.items() if key not in ("labelled", "completion")}
    words = {"prompt": whole, "template": form.template.name, "where": form.named(row["where"])}
    if kind == "demonstrations":
        words["completion"] = _following(whole, completion, form.with_reason, data)
    return kept | words


def _example(labelled: Labelled, form: Form, texts: _Texts, data: Data) -> str:
    """A row with its answer, as it stands in front of another one."""
    with_reason = form.with_reason and bool(labelled.reason)
    prompt, completion = _pair(labelled, form, texts, with_reason)
    return prompt + _following(prompt, completion, with_reason, data.model_copy(update={"chat": False}))


def _following(prompt: str, completion: str, with_reason: bool, data: Data) -> str:
    """A completion as it follows its prompt: in a text, a reason is parted from the cue in every script."""
    text = continuation(prompt, completion, data)
    parted = data.chat or not with_reason or text[0].isspace() or prompt[-1].isspace()
    return text if parted else f"\n{text}"


def _pair(labelled: Labelled, form: Form, texts: _Texts, with_reason: bool) -> tuple[str, str]:
    prompt = texts.prompt(form.template, labelled)
    completion = texts.completion(form.template, labelled)
    thought = labelled.task.chain_of_thought
    if not with_reason or thought is None:
        return prompt, completion
    return f"{prompt}\n{thought.cue}", f"{labelled.reason}\n{thought.conclusion}{completion}"


def _check_different(
    rows: Sequence[Row], before: Sequence[Row], texts: _Texts, forms: Mapping[int, Form]
) -> None:
    """Refuse a template that makes the same text of different rows: it leaves out what tells them apart.

    An inverted template asks for different texts by the same words.
    """
    seen: dict[tuple[int, str, str], Row] = {}
    for row, source, form in zip(rows, before, forms.values(), strict=True):
        labelled, template = source["labelled"], form.template
        if template.inverted:
            continue
        text = texts.prompt(template, labelled)
        first = seen.setdefault((_task(source), template.name, text), row)
        if first["key"] != row["key"]:
            raise UserError(
                f"{row['where']}: task {labelled.task.name}: the prompt is the same as that of "
                f"{first['where']}, whose columns are others. Write into the template what tells them apart, "
                "or remove one."
            )
