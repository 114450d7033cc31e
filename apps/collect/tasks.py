"""What people are asked: prompts, and answers to them from a file, an evaluation, or a policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.errors import UserError
from configs.schema import Experiment, Stage
from configs.schema import Source as DataSource
from data.batches.tokenize import continuation
from data.examples import StageData, ranked_by_people
from data.people.round import MOST_RANKED, Kind, Task, task_id
from data.sources.bad_rows import BadRow
from data.sources.collected_rankings import SPLITS
from data.sources.formats import Kind as FileKind
from data.sources.formats import Row
from data.sources.loading import load_rows
from data.sources.messages import Text, last_text, read_text, recorded
from data.sources.mixture import first_of_each, label_of
from data.sources.split import prompt_key
from data.sources.text import collapsed, read_string
from data.storage.files import read_json_lines
from pipeline.state.run_directory import RunDirectory

Say = Callable[[str], None]
Split = str  # train or held_out
PROMPTS_OF: dict[Kind, Stage] = {"rankings": "rm", "ratings": "ppo", "demonstrations": "sft", "pairs": "ppo"}
EVALUATION = "evaluation.jsonl"  # of PPO: the answers of all policies to the held-out prompts


@dataclass(frozen=True)
class Asked:
    """What the lead wants to collect.

    Attributes:
        policies: whose answers people judge; empty for those that the kind is about.
        prompts: a file; None for those of the stage that the labels are for.
        answers: a file of prompts with answers, which no policy need give.
        number: the most prompts.
        each: answers to each prompt; None for what the experiment says.
        draft: a policy writes a draft of each demonstration.
        words: settings of the run that the command changes.
    """

    kind: Kind
    policies: tuple[str, ...] = ()
    prompts: Path | None = None
    answers: Path | None = None
    number: int | None = None
    each: int | None = None
    draft: bool = False
    words: tuple[str, ...] = ()


def make_tasks(
    asked: Asked, policies: Sequence[str], each: int, config: Experiment, run: RunDirectory, say: Say
) -> tuple[list[Task], int]:
    """The tasks of a new round, and how many are left out: they have no two different answers to compare.

    Raises:
        UserError: a prompt, answer or policy cannot be used.
    """
    found: Iterator[Task]
    if asked.answers and asked.kind == "pairs" and asked.policies:
        found = _in_turn(_answers_of_policies(asked.answers, policies, config, run, say), asked.number)
    elif asked.answers:
        found = _answers_of_file(asked, config, run, say)
    elif recorded_by_ppo(asked, policies):
        file = run.stage("ppo") / EVALUATION
        found = _in_turn(_answers_of_policies(file, policies, config, run, say), asked.number)
    elif not policies:
        found = (make_task(split, row["prompt"], []) for split, row in _rows(asked, config, run, say))
    else:
        from apps.collect.sampling import sampled_tasks  # imports torch

        prompts = list(_rows(asked, config, run, say))
        found = sampled_tasks(asked.kind, policies, each, config, run, prompts, say)
    tasks = list(found)
    if asked.kind != "pairs" and (asked.answers or not policies):
        tasks = _fitting(tasks, PROMPTS_OF[asked.kind], config, say)
    least = 2 if asked.kind in ("rankings", "pairs") else 0
    useful = [task for task in map(distinct, tasks) if len(task.completions) >= least]
    if equal := len(tasks) - len(useful):
        say(f"{equal} of {len(tasks)} prompts left out: their answers are the same")
    return list({task.id: task for task in useful}.values()), equal


def recorded_by_ppo(asked: Asked, policies: Sequence[str]) -> bool:
    """Whether people judge what PPO's own evaluation has recorded."""
    return asked.kind == "pairs" and not (asked.prompts or asked.answers) and set(policies) == {"sft", "ppo"}


def _in_turn(tasks: Iterator[Task], number: int | None) -> Iterator[Task]:
    """At most `number` tasks, for which several sources take turns; None for all."""
    yield from tasks if number is None else first_of_each([*tasks], number, lambda task: task.prompt_source)


def _fitting(tasks: list[Task], stage: Stage, config: Experiment, say: Say) -> list[Task]:
    """The tasks that the stage can read. Sampled ones are within the limits already."""
    from apps.collect.fitting import fitting  # imports torch

    kept = fitting(tasks, stage, config)
    if left := len(tasks) - len(kept):
        say(
            f"{left} of {len(tasks)} prompts left out: with their answers, they are longer than "
            f"data.max_prompt_length ({config.data.max_prompt_length}) or data.max_length "
            f"({config.data.max_length})"
        )
    return kept


def distinct(task: Task) -> Task:
    """The task with one of each group of answers that differ by blanks only."""
    keys = [collapsed(completion) for completion in task.completions]
    kept = [position for position, key in enumerate(keys) if keys.index(key) == position]
    if len(kept) == len(keys):
        return task
    columns = {
        name: tuple(column[position] for position in kept)
        for name in ("completions", "completion_ids", "sources")
        if (column := getattr(task, name))
    }
    return task.model_copy(update=columns | {"id": task_id(task.prompt, columns["completions"])})


def make_task(
    split: Split,
    prompt: Text,
    completions: Sequence[str],
    ids: Sequence[Sequence[int]] = (),
    sources: Sequence[str] = (),
    prompt_source: str = "",
) -> Task:
    """A task with its id."""
    return Task.model_validate(
        {
            "id": task_id(prompt, completions),
            "split": split,
            "prompt": prompt,
            "completions": completions,
            "completion_ids": ids,
            "sources": sources,
            "prompt_source": prompt_source,
        }
    )


def _rows(asked: Asked, config: Experiment, run: RunDirectory, say: Say) -> Iterator[tuple[Split, Row]]:
    """Each prompt with its split, and with its answers if a file has them.

    They are of a file, or of the stage that the labels are for.

    Rankings are of the prompts of `data.rm`, training and held-out ones. Of pairs, which evaluate, the
    prompts are those that PPO holds out. Of fewer prompts, as large a share is held out, and several sources
    take turns.
    """
    stage, file, form = PROMPTS_OF[asked.kind], asked.answers or asked.prompts, _form(asked)
    if file and asked.kind != "rankings":
        source = DataSource(path=str(file), limit=asked.number)
        yield from (("train", row) for row in load_rows(source, form, say).rows)
        return
    if file:
        share = next(one.held_out for one in config.data.sources(stage) if one.held_out != "all")
        source = DataSource(path=str(file), held_out=share)
        config = config.model_copy(update={"data": config.data.model_copy(update={stage: source})})
    rows = _stage_data(config, stage, run, say).rows(form, once=True)
    train = [] if asked.kind == "pairs" else rows.train
    held_out = rows.held_out if asked.kind in ("rankings", "pairs") else []
    total = len(train) + len(held_out)
    number = min(asked.number or total, total)
    kept = math.ceil(number * len(held_out) / max(1, total))
    for split, part, some in zip(SPLITS, (train, held_out), (number - kept, kept), strict=True):
        yield from ((split, row) for row in (first_of_each(part, some, label_of) if asked.number else part))


def _form(asked: Asked) -> FileKind:
    """What the rows of a file serve as: prompts, or answers to judge, of which a row for ratings has one."""
    if not asked.answers:
        return "prompts"
    return "demonstrations" if asked.kind in ("ratings", "demonstrations") else "rankings"


def _stage_data(config: Experiment, stage: Stage, run: RunDirectory, say: Say) -> StageData:
    return StageData(config, stage, say, ranked=ranked_by_people(config, stage, run.path))


def _answers_of_file(asked: Asked, config: Experiment, run: RunDirectory, say: Say) -> Iterator[Task]:
    """The prompts and answers of a file, in any format of rankings; for ratings, of demonstrations."""
    for split, row in _rows(asked, config, run, say):
        answers = row["completions"] if _form(asked) == "rankings" else [row["completion"]]
        if asked.kind == "pairs" and len(answers) != 2:
            raise UserError(f"{row['where']}: a pair has two answers, and this row {len(answers)}.")
        if asked.kind == "rankings" and len(answers) > MOST_RANKED:
            raise UserError(
                f"{row['where']}: {len(answers)} answers are more than {MOST_RANKED}: a person gives each "
                "its rank by a digit. Leave some out."
            )
        yield make_task(split, row["prompt"], [last_text(answer) for answer in answers])


def _answers_of_policies(
    file: Path, policies: Sequence[str], config: Experiment, run: RunDirectory, say: Say
) -> Iterator[Task]:
    """The answers that an evaluation recorded, a column for each policy.

    One more sampling would give other answers than those whose scores are known.

    Raises:
        UserError: the file is missing, has no such columns, or something else than text in them.
    """
    if not file.is_file():
        raise UserError(
            f"{file} is missing: stage ppo has not finished, or holds no prompts out. Run it first, or "
            "sample answers to other prompts with --prompts."
        )
    held_out = _stage_data(config, "ppo", run, say).rows("prompts").held_out
    sources = {prompt_key(row["prompt"]): label_of(row) for row in held_out}
    of_one_turn = {
        last_text(row["prompt"]): row["prompt"]
        for row in held_out
        if "conversation" not in recorded(row["prompt"])
    }
    rows = read_json_lines(file, ["prompt", *policies], remedy="Name other policies, or another file.")
    for number, row in enumerate(rows, 1):
        try:
            text = read_string(row["prompt"], "prompt")
            whole = read_text(row["conversation"], "conversation") if "conversation" in row else None
            given = [read_string(row[policy], policy) for policy in policies]
        except BadRow as error:
            raise UserError(f"{file}, line {number}: {error}.") from None
        prompt = whole or of_one_turn.get(text, text)
        answers = [continuation(prompt, answer, config.data) for answer in given]
        source = sources.get(prompt_key(prompt), "")
        yield make_task("held_out", prompt, answers, sources=policies, prompt_source=source)
