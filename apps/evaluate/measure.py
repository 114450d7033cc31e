"""The whole comparison: answers of all candidates, what judges say of them, and the figures of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apps.evaluate.answers import Answers, answer
from apps.evaluate.benchmarks import Benchmarks, load_tasks, run_benchmarks
from apps.evaluate.candidates import Candidate
from apps.evaluate.comparison import distinct, length_controlled_win_rate
from apps.evaluate.instructions import propose
from apps.evaluate.judges import Judge
from apps.evaluate.perplexity import nats_per_token
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
from stages.maths.statistics import kl_of_best, mean_with_interval, repeated_bigrams
from stages.sampling.sampler import open_sampler

INSTRUCTED = "base+instruction"
REASONING = 256  # tokens of an answer with its reasoning
Metrics = dict[str, float]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes:
        prompts: what was answered.
        answers: of each candidate by its name.
        metrics: of each candidate: means with `_low`, `_high` and `_n`.
        win_rates: of each judge: of each candidate against each other one, raw and at equal length.
        by_category: of each category of prompts: of each candidate, the first judge's mean.
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


def measure(
    run: TrainedRun,
    candidates: Sequence[Candidate],
    judges: Sequence[Judge],
    say: Say,
    material: Material,
) -> Comparison:
    """Answer, judge and compare.

    Raises:
        UserError: a policy, prompt or judge cannot be used.
    """
    names = list(dict.fromkeys(candidate.policy for candidate in candidates))
    if material.instructions and BASE not in names:
        names.append(BASE)
    with_reward = "rm" in run.manifests
    if not with_reward and any(candidate.best_of > 1 for candidate in candidates):
        raise UserError("--policies: best of n needs the reward model, and stage rm has not finished here.")
    loaded = names + (["sft"] if "sft" in run.manifests and "sft" not in names else [])  # for the KL
    if material.benchmarks:
        if all(one.in_context or one.samples > 1 for one in candidates):
            raise UserError("--benchmarks: run on a policy as it is. Name one in --policies, such as sft.")
        load_tasks(material.benchmarks)  # refuses before anything is sampled
    say(f"loading {run.config.base.model} ({run.config.base.quantization}) and {', '.join(loaded)}")
    policies = load_policies(run, chosen_adapters(run, loaded, reward=with_reward), this_process())
    prompts, categories = read_prompts(run, policies.tokenizer, material.prompts, material.number)
    notes: list[str] = []
    needed = material.instructions or any(candidate.shots for candidate in candidates)
    demonstrations = training_demonstrations(run) if needed else []
    if material.instructions:
        best, note = _instructed_base(run.config, policies, demonstrations, material.instructions)
        candidates, notes = [*candidates, best], [note]
    answers = _answers(run.config, policies, candidates, prompts, demonstrations, say)
    asked = [prompt.prompt for prompt in prompts]
    metrics = {name: _metrics(asked, one, judges) for name, one in answers.items()}
    if material.text:
        for candidate in candidates:
            if not candidate.in_context and candidate.samples == 1:
                role = policies.roles[candidate.policy]
                metrics[candidate.name] |= nats_per_token(policies, role, material.text)
    win_rates = {judge.name: _win_rates(asked, answers, judge) for judge in judges}
    return Comparison(
        asked,
        answers,
        metrics,
        win_rates,
        _by_category(asked, answers, judges, categories) if categories else {},
        [*notes, *_notes(answers, with_reward), *(note for judge in judges for note in judge.notes())],
        run_benchmarks(policies, candidates, material.benchmarks, say) if material.benchmarks else {},
    )


def _answers(
    config: Experiment,
    policies: LoadedPolicies,
    candidates: Sequence[Candidate],
    prompts: Sequence[Prompt],
    demonstrations: Sequence[Row],
    say: Say,
) -> dict[str, Answers]:
    """The answers of each candidate, in the order of the candidates."""
    answers: dict[str, Answers] = {}
    for rollout, some in _by_rollout(config.ppo.rollout, candidates):
        with open_sampler(policies.base, policies.tokenizer, this_process(), rollout) as sampler:
            for candidate in some:
                say(f"{candidate.name}: {len(prompts) * candidate.samples} answers to {len(prompts)} prompts")
                answers[candidate.name] = answer(
                    config, policies, sampler, candidate, prompts, demonstrations
                )
    return {candidate.name: answers[candidate.name] for candidate in candidates}


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


def _metrics(prompts: Sequence[Text], answers: Answers, judges: Sequence[Judge]) -> Metrics:
    """The figures of one candidate: judges' scores, KL, length, variety, cost."""
    metrics: Metrics = {}
    for judge in judges:
        if scores := judge.scores(prompts, answers):
            metrics |= mean_with_interval(judge.name, scores)
    if answers.kl:
        metrics |= mean_with_interval("kl", answers.kl)
    elif (one := answers.candidate).best_of > 1 and one.policy == "sft" and not one.in_context:
        metrics["kl"] = kl_of_best(one.best_of)
    return (
        metrics
        | mean_with_interval("length", answers.lengths)
        | mean_with_interval("ended", [float(ended) for ended in answers.ended])
        | mean_with_interval("repetition", [repeated_bigrams(text) for text in answers.texts])
        | {"distinct_1": distinct(answers.texts, 1), "distinct_2": distinct(answers.texts, 2)}
        | {"different": len(set(answers.texts)) / len(answers.texts)}
        | mean_with_interval("cost", answers.cost)
        | (mean_with_interval("agreement", answers.agreement) if answers.agreement else {})
    )


def _win_rates(
    prompts: Sequence[Text], answers: Mapping[str, Answers], judge: Judge
) -> dict[str, dict[str, Metrics]]:
    """The win rates between all candidates by one judge. Each pair is judged once.

    A pair of candidates is left out if nothing of it is judged. People judge what they were asked.
    """
    names, rates = list(answers), dict[str, dict[str, Metrics]]()
    for place, name in enumerate(names):
        for other in names[place + 1 :]:
            judged = judge.compare(prompts, answers[name], answers[other])
            if not judged:
                continue
            won, lengths, others = zip(*judged, strict=True)
            lost = [1 - outcome for outcome in won]
            rates.setdefault(name, {})[other] = _rates(won, lengths, others)
            rates.setdefault(other, {})[name] = _rates(lost, others, lengths)
    return rates


def _rates(won: Sequence[float], lengths: Sequence[int], others: Sequence[int]) -> Metrics:
    """A paired bootstrap: prompts are drawn with both of their answers."""
    return mean_with_interval("win_rate", won) | length_controlled_win_rate(won, lengths, others)


def _by_category(
    prompts: Sequence[Text],
    answers: Mapping[str, Answers],
    judges: Sequence[Judge],
    categories: Sequence[str],
) -> dict[str, dict[str, Metrics]]:
    """The mean score of each candidate in each category, by the first judge that scores.

    Args:
        categories: of each prompt; empty for none.
    """
    table: dict[str, dict[str, Metrics]] = {}
    for name, one in answers.items():
        scores = next((scores for judge in judges if (scores := judge.scores(prompts, one))), [])
        for category in dict.fromkeys(filter(None, categories)):
            own = [score for score, of_one in zip(scores, categories, strict=False) if of_one == category]
            if own:
                table.setdefault(category, {})[name] = mean_with_interval("score", own)
    return table


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
            'the last "answer is", or its last line. Length counts the reasoning, too.'
        )
    if any(one.candidate.shots or one.candidate.instruction for one in answers.values()):
        notes.append("Answers after demonstrations or instructions in plain text end at a blank line.")
    if any(one.candidate.in_context for one in answers.values()):
        notes.append("The KL of candidates with more in their prompt is not defined.")
    if not with_reward:
        notes.append("The run has no reward model.")
    return notes
