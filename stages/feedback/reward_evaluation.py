"""Stage rm's report on the reward model: `evaluation.json`, from scores of the held-out rankings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from data.batches import tokenize
from data.sources.messages import last_text
from data.sources.split import prompt_key
from data.storage.files import write_json_lines, write_text
from stages.distributed.ranks import Ranks
from stages.feedback.bag_of_words import BagOfWords
from stages.maths.preferences import Noise, ScoredRanking, prompt_numbers, reward_report
from stages.maths.statistics import ENDS
from stages.models.roles import Role, Roles
from stages.sampling.response_batch import response_batch, response_logprobs

MOST_RANKINGS = 5_000  # that the bag of words learns from
REPORT, RANKINGS = "evaluation.json", "evaluation.jsonl"
FIGURES = {  # the report's figures among the stage's metrics, each with its interval
    "accuracy_when_shorter": ("groups", "length", "the better answer is shorter"),
    "accuracy_of_longer": ("baselines", "longer"),
    "accuracy_of_shorter": ("baselines", "shorter"),
    "accuracy_of_likelier": ("baselines", "likelier"),
    "accuracy_of_words": ("baselines", "bag of words"),
    "accuracy_lead": ("lead",),
    "brier": ("calibration", "brier"),
    "length_correlation": ("length_correlation",),
}


@torch.no_grad()
def nats_of_answers(
    roles: Roles, rankings: Sequence[tokenize.Ranking], pad_id: int, ranks: Ranks, at_once: int
) -> list[list[float]]:
    """For each ranking, the mean log-likelihood per token of each answer under the base itself, in nats.

    Args:
        roles: with the base. The policy may have sampled an id that it has not: see `RoleModels`.
        at_once: answers in one forward.
    """
    last = roles.vocabulary - 1

    def known(ids: Sequence[int]) -> list[int]:
        return [min(token, last) for token in ids]

    pairs = [(known(one.prompt_ids), known(ids)) for one in rankings for ids in one.completion_ids]

    def nats(some: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        prompts, answers = zip(*some, strict=True)
        batch = response_batch(prompts, answers, pad_id, ranks.device)
        logprobs = response_logprobs(roles, Role.BASE, batch).masked_fill(~batch.mask, 0.0)
        means: list[float] = (logprobs.sum(1) / batch.mask.sum(1).clamp(min=1)).tolist()
        return means

    values = iter(ranks.map_in_order(pairs, at_once, nats))
    return [[next(values) for _ in one.completion_ids] for one in rankings]


def scored_rankings(
    train: Sequence[tokenize.Ranking],
    held_out: Sequence[tokenize.Ranking],
    rewards: Sequence[Sequence[float]],
    nats: Sequence[Sequence[float]],
    tokenizer: PreTrainedTokenizerBase,
) -> list[ScoredRanking]:
    """The held-out rankings with everything that the report needs to know of their answers."""

    def texts(ranking: tokenize.Ranking) -> list[str]:
        return [
            text.strip() for text in tokenizer.batch_decode(ranking.completion_ids, skip_special_tokens=True)
        ]

    some = train[:: -(-len(train) // MOST_RANKINGS) or 1]
    bag = BagOfWords([texts(one) for one in some], [one.ranks for one in some])
    return [
        ScoredRanking(
            prompt=last_text(one.prompt),
            answers=(answers := texts(one)),
            ranks=one.ranks,
            rewards=list(rewards[number]),
            lengths=[len(ids) for ids in one.completion_ids],
            nats=list(nats[number]),
            words=bag.scores(answers),
            labels=one.labels,
            source=one.source,
            key=prompt_key(one.prompt),
        )
        for number, one in enumerate(held_out)
    ]


def write_report(folder: Path, rankings: Sequence[ScoredRanking], noise: Noise | None) -> dict[str, float]:
    """Write `evaluation.json` and the scored rankings; return the figures that are metrics of the stage."""
    report = reward_report(rankings, noise, prompt_numbers(rankings))
    write_json_lines(folder / RANKINGS, [asdict(one) for one in rankings])
    write_text(folder / REPORT, json.dumps(report, ensure_ascii=False, indent=1) + "\n")
    return report_metrics(report)


def report_metrics(report: dict[str, Any]) -> dict[str, float]:
    """The report's figures by the names of metrics."""
    metrics: dict[str, float] = {"calibration_error": report["calibration"]["error"]}
    if report["calibration"]["temperature"] is not None:
        metrics["temperature"] = report["calibration"]["temperature"]
    for name, path in FIGURES.items():
        figure: Any = report
        for part in path:
            figure = (figure or {}).get(part)
        if figure:
            metrics |= {f"{name}{end}": figure[part] for part, end in ENDS.items()}
    for source, figure in report["groups"].get("source", {}).items():
        metrics |= {f"accuracy/{source}{end}": figure[part] for part, end in ENDS.items()}
    return metrics
