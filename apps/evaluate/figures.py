"""The figures of a comparison: of each candidate, of each pair of them, and of each category of prompts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import fmean

from apps.evaluate.answers import Answers
from apps.evaluate.comparison import distinct, length_controlled_win_rate
from apps.evaluate.judges import Compared, ComparingJudge, Judge
from data.sources.messages import Text
from pipeline.terminal.format import show_number
from stages.maths.statistics import kl_of_best, mean_with_interval, repeated_bigrams

Metrics = dict[str, float]
ORDER = re.compile(r"-order\d+$")  # the end of a candidate's name
Outcomes = dict[tuple[str, str], Sequence[Compared]]  # of two candidates


def candidate_metrics(prompts: Sequence[Text], answers: Answers, judges: Sequence[Judge]) -> Metrics:
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


def order_notes(metrics: Mapping[str, Metrics], judges: Sequence[Judge]) -> list[str]:
    """Mean, least and most of candidates that differ in the order of demonstrations (Lu et al. 2022)."""
    notes = []
    for name in metrics:
        orders = [other for other in metrics if ORDER.sub("", other) == name]
        for judge in judges:
            scores = [metrics[one][judge.name] for one in orders if judge.name in metrics[one]]
            if len(scores) > 1:
                mean, least, most = (show_number(of(scores)) for of in (fmean, min, max))
                notes.append(
                    f"{len(scores)} orders of the demonstrations of {name}, by {judge.name}: mean {mean}, "
                    f"least {least}, most {most}."
                )
    return notes


def outcomes_of(prompts: Sequence[Text], answers: Mapping[str, Answers], judge: Judge) -> Outcomes:
    """What a judge says of all candidates, each against each other one. Each pair is judged once."""
    names = list(answers)
    return {
        (name, other): judge.compare(prompts, answers[name], answers[other])
        for place, name in enumerate(names)
        for other in names[place + 1 :]
    }


def win_rates(outcomes: Outcomes) -> dict[str, dict[str, Metrics]]:
    """The win rate of each candidate against each other one.

    A pair of candidates is left out if nothing of it is judged. People judge what they were asked.
    """
    rates = dict[str, dict[str, Metrics]]()
    for (name, other), judged in outcomes.items():
        if judged:
            won, ours, theirs = zip(*judged, strict=True)
            rates.setdefault(name, {})[other] = _rates(won, ours, theirs)
            rates.setdefault(other, {})[name] = _rates([1 - outcome for outcome in won], theirs, ours)
    return rates


def _rates(won: Sequence[float], lengths: Sequence[int], others: Sequence[int]) -> Metrics:
    """A paired bootstrap: prompts are drawn with both of their answers."""
    return mean_with_interval("win_rate", won) | length_controlled_win_rate(won, lengths, others)


def by_category(
    prompts: Sequence[Text],
    answers: Mapping[str, Answers],
    judges: Sequence[Judge],
    outcomes: Mapping[str, Outcomes],
    categories: Sequence[str],
) -> tuple[dict[str, dict[str, Metrics]], list[str]]:
    """The mean of each candidate in each category as `score`, and a sentence on what it is the mean of.

    It is of the scores of the first judge that scores. If none does, it is the win rate against the first
    candidate by the first endpoint. People judge prompts of their own, which have no category.

    Args:
        categories: of each prompt; empty for none.
    """
    for judge in judges:
        scores = {name: judge.scores(prompts, one) for name, one in answers.items()}
        if categories and all(scores.values()):
            return _means(scores, categories), [f"By category: mean score by {judge.name}."]
    first, *_ = answers
    for judge in judges:
        if categories and isinstance(judge, ComparingJudge):
            won = {
                other: [1 - one for one, *_ in judged]
                for (name, other), judged in outcomes[judge.name].items()
                if name == first
            }
            return _means(won, categories), [f"By category: win rate against {first}, by {judge.name}."]
    return {}, []


def _means(values: Mapping[str, Sequence[float]], categories: Sequence[str]) -> dict[str, dict[str, Metrics]]:
    table: dict[str, dict[str, Metrics]] = {}
    for category in dict.fromkeys(filter(None, categories)):
        for name, of_name in values.items():
            own = [value for value, its in zip(of_name, categories, strict=True) if its == category]
            table.setdefault(category, {})[name] = mean_with_interval("score", own)
    return table
