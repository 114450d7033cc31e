"""The whole comparison: answers of all candidates, what judges say of them, and the figures of both."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from apps.evaluate.answers import Answers, answer
from apps.evaluate.benchmarks import Benchmarks, load_tasks, run_benchmarks
from apps.evaluate.candidates import Candidate
from apps.evaluate.figures import (
    Metrics,
    by_category,
    candidate_metrics,
    order_notes,
    outcomes_of,
    win_rates,
)
from apps.evaluate.in_context import in_context
from apps.evaluate.instructions import propose
from apps.evaluate.judges import ComparingJudge, Judge
from apps.evaluate.perplexity import nats_per_token, note_of, read_text, windows_of
from apps.evaluate.prompts import Row, read_prompts, training_demonstrations
from apps.trained_run import (
    BASE,
    LoadedPolicies,
    TrainedRun,
    chosen_adapters,
    load_policies,
    this_process,
)
from configs.errors import UserError
from configs.schema import Experiment, Rollout
from data.batches.tokenize import Prompt
from data.sources.messages import Text
from stages.models.base_checks import context_window
from stages.sampling.sampler import open_sampler

INSTRUCTED = "base+instruction"
REASONING = 256  # tokens of an answer with its reasoning
Say = Callable[[str], None]
Keep = Callable[[Sequence[Text], Mapping[str, Answers]], None]


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes:
        prompts: what was answered.
        answers: of each candidate by its name.
        metrics: of each candidate: means with `_low`, `_high` and `_n`.
        win_rates: of each judge: of each candidate against each other one, raw and at equal length.
        by_category: of each category of prompts: of each candidate, a mean as `score`; a note says of what.
        notes: sentences on what the figures do not cover.
        benchmarks: of each task of lm-eval: of each policy, its `score`.
    """

    prompts: list[Text]
    answers: dict[str, Answers]
    metrics: dict[str, Metrics]
    win_rates: dict[str, dict[str, dict[str, Metrics]]]
    by_category: dict[str, dict[str, Metrics]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    benchmarks: dict[str, dict[str, Metrics]] = field(default_factory=dict)


@dataclass(frozen=True)
class Material:
    """What is read.

    Attributes:
        prompts: a file of prompts to answer; None for those that the run keeps from training.
        number: the most prompts to answer.
        text: a file of text, of which each policy's likelihood is measured.
        instructions: proposals of the base for an automatic prompt; with the best, it is a candidate, too.
        benchmarks: tasks of lm-eval.
    """

    prompts: Path | None = None
    number: int | None = None
    text: Path | None = None
    instructions: int = 0
    benchmarks: Benchmarks | None = None


class Group(NamedTuple):
    """Candidates that sample alike, each with the prompts as it reads them."""

    rollout: Rollout
    read: dict[Candidate, list[Prompt]]


def measure(
    run: TrainedRun,
    candidates: Sequence[Candidate],
    judges: Sequence[Judge],
    say: Say,
    material: Material,
    keep: Keep = lambda prompts, answers: None,
) -> Comparison:
    """Answer, judge and compare. What cannot be used is refused before anything is sampled.

    Args:
        keep: called with the answers before they are judged.

    Raises:
        UserError: a policy, prompt or judge cannot be used.
    """
    with_reward = "rm" in run.manifests
    if not with_reward and any(candidate.best_of > 1 for candidate in candidates):
        raise UserError("--policies: best of n needs the reward model, and stage rm has not finished here.")
    if material.benchmarks:
        if all(one.in_context or one.samples > 1 for one in candidates):
            raise UserError("--benchmarks: run on a policy as it is. Name one in --policies, such as sft.")
        load_tasks(material.benchmarks)
    text = read_text(material.text) if material.text else ""
    for judge in judges:
        if isinstance(judge, ComparingJudge):
            judge.endpoint.try_once(2)
    policies = _load(run, candidates, material, say)
    windows = windows_of(text, policies.tokenizer) if material.text else []
    asked = read_prompts(run, policies.tokenizer, material.prompts, material.number)
    needed = material.instructions or any(candidate.shots for candidate in candidates)
    demonstrations = training_demonstrations(run, asked.prompts) if needed else []
    groups = _groups(run.config, policies, candidates, asked.prompts, demonstrations)
    notes = list(asked.notes)
    if material.instructions:
        best, note = _instructed_base(run.config, policies, demonstrations, material.instructions)
        groups += _groups(run.config, policies, [best], asked.prompts, demonstrations)
        candidates, notes = [*candidates, best], [*notes, note]
    answers = _answers(run.config, policies, groups, asked.prompts, say)
    answers = {candidate.name: answers[candidate.name] for candidate in candidates}
    prompts = [prompt.prompt for prompt in asked.prompts]
    keep(prompts, answers)
    metrics = {name: candidate_metrics(prompts, one, judges) for name, one in answers.items()}
    if material.text:
        notes.append(note_of(material.text, windows))
        for one in candidates:
            if not one.in_context and one.samples == 1:
                metrics[one.name] |= nats_per_token(policies, policies.roles[one.policy], windows)
    notes += order_notes(metrics, judges)
    outcomes = {judge.name: outcomes_of(prompts, answers, judge) for judge in judges}
    categories, what = by_category(prompts, answers, judges, outcomes, asked.categories)
    return Comparison(
        prompts,
        answers,
        metrics,
        {name: win_rates(of_judge) for name, of_judge in outcomes.items()},
        categories,
        [*notes, *what, *_notes(answers, with_reward), *(note for judge in judges for note in judge.notes())],
        run_benchmarks(policies, candidates, material.benchmarks, say) if material.benchmarks else {},
    )


def _load(run: TrainedRun, candidates: Sequence[Candidate], material: Material, say: Say) -> LoadedPolicies:
    """The candidates' policies, and what their figures need: SFT for the KL, and the reward model."""
    names = [candidate.policy for candidate in candidates]
    names += [BASE] if material.instructions else []
    names += ["sft"] if "sft" in run.manifests else []
    names = list(dict.fromkeys(names))
    say(f"loading {run.config.base.model} ({run.config.base.quantization}) and {', '.join(names)}")
    return load_policies(run, chosen_adapters(run, names, reward="rm" in run.manifests), this_process())


def _groups(
    config: Experiment,
    policies: LoadedPolicies,
    candidates: Sequence[Candidate],
    prompts: Sequence[Prompt],
    demonstrations: Sequence[Row],
) -> list[Group]:
    """The candidates that sample alike, each with the prompts as it reads them.

    Raises:
        UserError: demonstrations are missing, or a prompt does not fit; see `in_context`.
    """
    window = context_window(policies.base.causal.config) or sys.maxsize  # a recurrent base has none
    return [
        Group(
            rollout,
            {
                one: in_context(
                    one,
                    prompts,
                    demonstrations,
                    policies.tokenizer,
                    config.data,
                    window - rollout.max_new_tokens,
                    config.seed,
                )
                for one in some
            },
        )
        for rollout, some in _by_rollout(config.ppo.rollout, candidates)
    ]


def _answers(
    config: Experiment,
    policies: LoadedPolicies,
    groups: Sequence[Group],
    prompts: Sequence[Prompt],
    say: Say,
) -> dict[str, Answers]:
    """The answers of each candidate."""
    answers: dict[str, Answers] = {}
    for rollout, some in groups:
        with open_sampler(policies.base, policies.tokenizer, this_process(), rollout) as sampler:
            for candidate, read in some.items():
                say(f"{candidate.name}: {len(prompts) * candidate.samples} answers to {len(prompts)} prompts")
                answers[candidate.name] = answer(config, policies, sampler, candidate, prompts, read)
    return answers


def _by_rollout(rollout: Rollout, candidates: Sequence[Candidate]) -> list[tuple[Rollout, list[Candidate]]]:
    """The candidates that sample alike. Reasoning takes more tokens than an answer."""
    longer = rollout.model_copy(update={"max_new_tokens": max(rollout.max_new_tokens, REASONING)})
    groups = [
        (rollout, [one for one in candidates if not one.reasons]),
        (longer, [one for one in candidates if one.reasons]),
    ]
    return [(settings, some) for settings, some in groups if some]


def _instructed_base(
    config: Experiment, policies: LoadedPolicies, demonstrations: Sequence[Row], number: int
) -> tuple[Candidate, str]:
    """The base with the best of `number` instructions that it proposes, and a sentence about it."""
    found = propose(policies, demonstrations, config.data, config.ppo.rollout, number, config.seed)
    without = next(one.logprob for one in found if not one.text)
    best = found[0] if found[0].text else found[1] if len(found) > 1 else found[0]
    note = (
        f"{INSTRUCTED}: of {len(found) - 1} instructions that the base proposed, {best.text!r} makes other "
        f"demonstrations likeliest: {best.logprob:.2f} nats per token, {without:.2f} without any."
    )
    return Candidate(INSTRUCTED, BASE, instruction=best.text), note


def _notes(answers: Mapping[str, Answers], with_reward: bool) -> list[str]:
    notes = []
    if any(one.candidate.best_of > 1 for one in answers.values()):
        notes.append(
            "The reward model picks the best of n, so its own score of them is no judgement. The KL of best "
            "of n is log n - (n - 1)/n."
        )
    if any(one.candidate.votes > 1 for one in answers.values()):
        notes.append(
            "A vote takes the answer that most samples give (Wang et al. 2022). Agree: the share of samples "
            "that give it. If each sample differs, a vote means nothing."
        )
    if any(one.candidate.reasons for one in answers.values()):
        notes.append(
            f"+cot is asked to think step by step, in {REASONING} tokens at most. Its answer stands after "
            'the first "answer is", or is its last line. Length is of that answer.'
        )
    if any(one.candidate.shots or one.candidate.instruction for one in answers.values()):
        notes.append("Answers after demonstrations or instructions in plain text end at a blank line.")
    if any(one.candidate.in_context for one in answers.values()):
        notes.append("The KL of candidates with more in their prompt is not defined.")
    if not with_reward:
        notes.append("The run has no reward model.")
    return notes
