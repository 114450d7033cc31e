"""Accuracy on labelled tasks by rank classification: the option with the highest likelihood is the answer.

As in T0 (Sanh et al. 2021, section 4), each row is asked in every wording, and nothing is sampled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from pydantic import ValidationError

from apps.answers.prompts import window
from apps.evaluate.measure import Say
from apps.evaluate.prompts import trained_keys
from apps.likelihood import Pair, option_logprobs, token_logprobs
from apps.trained_run import LoadedPolicies, TrainedRun, chosen_adapters, load_policies, this_process
from configs.errors import UserError
from configs.schema import Data, Source
from configs.task_file import read_tasks, source_of_task, split_reference
from configs.task_pool import Task, Template
from data.batches import tokenize
from data.batches.wording import render
from data.sources.formats import Row
from data.sources.loading import load_rows
from data.sources.unit import unit
from stages.maths.statistics import Figure, figure
from stages.models.base_checks import supports_block_mask

AT_ONCE = 8  # prompts in a forward, each with its options
SUM, MEAN = "accuracy", "accuracy_per_token"  # without and with length normalisation
Correct = dict[str, list[list[float]]]  # of SUM and MEAN: 1.0 if right, of each template, of each row


@dataclass(frozen=True)
class TaskRows:
    """Rows of a task that no policy of the run was trained on."""

    task: Task
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    @property
    def templates(self) -> list[Template]:
        """Those that ask for the answer."""
        return [template for template in self.task.templates if not template.inverted]


@dataclass(frozen=True)
class TaskResult:
    """What came out for one task.

    Attributes:
        majority: the share of the most frequent answer, which is the accuracy of always giving it.
        chance: the accuracy of guessing.
        accuracy: of each policy: over all templates, "" for the mean, and of each template.
        gain: of each policy but the first: its accuracy less that of the first, on the same rows.
        spread: of each policy: its lowest and highest accuracy over templates.
    """

    task: str
    held_out: bool
    majority: Figure
    majority_answer: str
    chance: float
    accuracy: dict[str, dict[str, dict[str, Figure]]]
    gain: dict[str, dict[str, Figure]]
    notes: list[str]

    def spread(self, policy: str, measure: str) -> tuple[float, float]:
        """The lowest and the highest accuracy of a policy over templates."""
        values = [one[measure]["value"] for name, one in self.accuracy[policy].items() if name]
        return min(values), max(values)


def task_rows(run: TrainedRun, wanted: Sequence[str], number: int | None, say: Say) -> list[TaskRows]:
    """The rows of the tasks that `--tasks` names: FILE.yaml, FILE.yaml:NAME, or POOL=DATA.

    Raises:
        UserError: a task or its rows cannot be read, it has no options, or the run was trained on all rows.
    """
    found: list[TaskRows] = []
    learned = trained_keys(run)
    for one in wanted:
        reference, _, path = one.partition("=")
        tasks = read_tasks(reference, "--tasks")
        for task in tasks:
            if task.options is None:
                if len(tasks) == 1:
                    raise UserError(f"--tasks: {task.name} has no options to choose from. Give it `options`.")
                say(f"{task.name}: left out, as it has no options to choose from")
                continue
            found.append(_rows(task, _source(reference, task, path), learned, number, run.config.seed))
            say(f"{task.name}: {len(found[-1].rows)} rows, {len(found[-1].templates)} templates")
    if not found:
        raise UserError("--tasks: none of the tasks has options to choose from. Give them `options`.")
    return found


def _source(reference: str, task: Task, path: str) -> Source:
    file, _ = split_reference(reference)
    name = f"{file}:{task.name}" if file else task.name
    given: dict[str, Any] = {"path": path} if path else source_of_task(name, "--tasks")
    try:
        return Source.model_validate({**given, "task": name})
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"--tasks: {name}: {reason}.") from None


def _rows(task: Task, source: Source, learned: set[str], number: int | None, seed: int) -> TaskRows:
    notes: list[str] = []
    rows = load_rows(source, "demonstrations", notes.append).rows
    unseen = {row["key"]: row for row in rows if row["key"] not in learned}
    if len(unseen) < len({row["key"] for row in rows}):
        trained = sum(row["key"] in learned for row in rows)
        notes.append(f"{task.name}: {trained:,} of {len(rows):,} rows left out: the run was trained on them.")
    if len(unseen) < 2:
        raise UserError(
            f"--tasks: {source.path}: the run was trained on its rows. Give rows that it has not seen."
        )
    chosen = sorted(unseen.values(), key=lambda row: unit(seed, "evaluate", row["key"]))[:number]
    return TaskRows(task, chosen, notes)


def measure_tasks(
    run: TrainedRun, names: Sequence[str], given: Sequence[TaskRows], say: Say
) -> list[TaskResult]:
    """The accuracy of each policy on each task. The first policy is what the others are compared with.

    Raises:
        UserError: there is no such policy, a template fails on a row, or no row fits.
    """
    say(f"loading {run.config.base.model} ({run.config.base.quantization}) and {', '.join(names)}")
    policies = load_policies(run, chosen_adapters(run, names, reward=False), this_process())
    results = []
    for one in given:
        say(f"{one.task.name}: {len(names)} policies choose among the options of {len(one.rows)} rows")
        results.append(measure_task(policies, names, one, run.config.data, window(policies.base)))
    return results


def measure_task(
    policies: LoadedPolicies, names: Sequence[str], given: TaskRows, data: Data, context: int
) -> TaskResult:
    """The accuracy of each policy on one task.

    Args:
        context: tokens of a prompt and an option; longer rows are left out, and counted in the notes.

    Raises:
        UserError: a template fails on a row, or no row fits.
    """
    asked = [_pairs(given, template, policies, data, context) for template in given.templates]
    fits = [i for i in range(len(given.rows)) if all(pairs[i] for pairs in asked)]
    notes = list(given.notes)
    if len(fits) < len(given.rows):
        notes.append(
            f"{given.task.name}: {len(given.rows) - len(fits)} rows exceed {context} tokens; left out."
        )
    if len(fits) < 2:
        raise UserError(f"--tasks: {given.task.name}: none of its rows fits into {context} tokens.")
    rows = [given.rows[i]["labelled"] for i in fits]
    truth = [_options_of(row).index(row.answer) for row in rows]
    correct = {
        name: _correct(policies, name, [[pairs[i] for i in fits] for pairs in asked], truth) for name in names
    }
    first, common = names[0], Counter(row.answer for row in rows).most_common(1)[0][0]
    return TaskResult(
        given.task.name,
        given.task.held_out == "all",
        figure([float(row.answer == common) for row in rows]),
        common,
        fmean(1 / len(_options_of(row)) for row in rows),
        {name: _accuracy(one, given.templates) for name, one in correct.items()},
        {name: _gain(correct[name], correct[first]) for name in names[1:]},
        notes,
    )


def _options_of(row: Any) -> list[str]:
    return list(row.values["options"])


def _pairs(
    given: TaskRows, template: Template, policies: LoadedPolicies, data: Data, context: int
) -> list[list[Pair]]:
    """Of each row, the tokens of the prompt and of each option; [] if one is longer than the context."""
    wide = data.model_copy(update={"max_length": 2 * context, "max_prompt_length": 2 * context - 1})
    rows = [row["labelled"] for row in given.rows]
    places = [f"{row['where']}, template {template.name}" for row in given.rows]
    prompts = render([(template.prompt, row) for row in rows], places)
    jobs = [(i, row.answering(option)) for i, row in enumerate(rows) for option in _options_of(row)]
    texts = render(
        [(template.completion, rows[i]) for i, _ in jobs],
        [places[i] for i, _ in jobs],
        [values for _, values in jobs],
    )
    pairs: list[list[Pair]] = [[] for _ in rows]
    for (i, _), text in zip(jobs, texts, strict=True):
        follows = tokenize.continuation(prompts[i], text, data)
        pairs[i].append(tokenize.answer(prompts[i], follows, False, policies.tokenizer, wide))
    return [
        of_row if all(len(prompt) + len(option) <= context for prompt, option in of_row) else []
        for of_row in pairs
    ]


def _correct(
    policies: LoadedPolicies, name: str, asked: Sequence[Sequence[list[Pair]]], truth: Sequence[int]
) -> Correct:
    logprobs = iter(_logprobs(policies, name, [of_row for pairs in asked for of_row in pairs]))
    correct: Correct = {SUM: [], MEAN: []}
    for pairs in asked:
        scores = [[(sum(one), fmean(one)) for one in next(logprobs)] for _ in pairs]
        for place, measure in enumerate((SUM, MEAN)):
            picks = [max(range(len(one)), key=lambda i: one[i][place]) for one in scores]
            correct[measure].append([float(pick == right) for pick, right in zip(picks, truth, strict=True)])
    return correct


def _logprobs(policies: LoadedPolicies, name: str, rows: Sequence[list[Pair]]) -> list[list[list[float]]]:
    """Of each option of each row, the log-probability of each token."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0][0]))  # neighbours need little padding
    pad, device = policies.tokenizer.pad_token_id, policies.base.causal.device
    role = policies.roles[name]
    if supports_block_mask(policies.base.causal) and all(_one_prompt(row) for row in rows):
        asked = [(rows[i][0][0], [option for _, option in rows[i]]) for i in order]
        found = option_logprobs(policies.models, role, asked, pad, device, AT_ONCE)
    else:
        flat = [pair for i in order for pair in rows[i]]
        each = iter(token_logprobs(policies.models, role, flat, pad, device, AT_ONCE))
        found = [[next(each) for _ in rows[i]] for i in order]
    by_row = dict(zip(order, found, strict=True))
    return [by_row[i] for i in range(len(rows))]


def _one_prompt(row: Sequence[Pair]) -> bool:
    """Whether all options follow the same tokens. They do unless a token spans prompt and option."""
    return all(prompt == row[0][0] for prompt, _ in row)


def _accuracy(correct: Correct, templates: Sequence[Template]) -> dict[str, dict[str, Figure]]:
    found = {"": {measure: figure(_over_templates(values)) for measure, values in correct.items()}}
    for number, template in enumerate(templates):
        found[template.name] = {measure: figure(values[number]) for measure, values in correct.items()}
    return found


def _over_templates(correct: Sequence[Sequence[float]]) -> list[float]:
    """Of each row, the share of templates with which it is answered right. The bootstrap draws rows."""
    return [fmean(of_row) for of_row in zip(*correct, strict=True)]


def _gain(correct: Correct, first: Correct) -> dict[str, Figure]:
    """A paired bootstrap: rows are drawn with the answers of both policies."""
    return {
        measure: figure(
            [
                ours - theirs
                for ours, theirs in zip(_over_templates(values), _over_templates(first[measure]), strict=True)
            ]
        )
        for measure, values in correct.items()
    }


def as_json(results: Sequence[TaskResult]) -> list[Mapping[str, Any]]:
    """The results as `tasks.json` has them."""
    return [
        {
            "task": one.task,
            "held_out": one.held_out,
            "majority": one.majority,
            "majority_answer": one.majority_answer,
            "chance": one.chance,
            "accuracy": {name: figures[""] for name, figures in one.accuracy.items()},
            "gain": one.gain,
            "templates": {
                name: {template: figure for template, figure in figures.items() if template}
                for name, figures in one.accuracy.items()
            },
            "notes": one.notes,
        }
        for one in results
    ]
