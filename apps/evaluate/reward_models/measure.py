"""Measure a reward model on preferences: the report of stage rm, and its figures by subset."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from apps.evaluate.reward_models.benchmarks import (
    TIES,
    in_order,
    is_reward_bench,
    is_reward_bench_2,
    picks_best,
    section_means,
    separates,
    subset_means,
    ties_pairs,
    ties_score,
)
from apps.evaluate.reward_models.rows import Preferences
from apps.evaluate.reward_models.scorer import ScoredRow, Scorer
from configs.errors import UserError
from data.sources.messages import last_text
from data.sources.split import prompt_key
from pipeline.terminal.format import show_known
from stages.feedback.bag_of_words import BagOfWords
from stages.maths.preferences import Noise, ScoredRanking, ceiling_of_agreed, reward_report
from stages.maths.statistics import Figure, figure, has_interval

FOLDS = 5  # of the bag of words
FEWEST = 20  # prompts from which a bag of words learns


@dataclass(frozen=True)
class Measured:
    """A reward model on preferences.

    Attributes:
        report: as in `rm/evaluation.json`.
        subsets: of each subset, accuracy over pairs and, if it has more than two answers, the best of n.
        sections: RewardBench's sections or RewardBench 2's subsets, as their leaderboards score them.
        rankings: with all scores, in order.
        counts: of the rows, by what became of them.
        notes: what a person should know.
    """

    report: dict[str, Any]
    subsets: dict[str, dict[str, Figure]]
    sections: dict[str, Figure]
    rankings: list[ScoredRanking]
    counts: dict[str, int]
    notes: list[str]


def measure(scorer: Scorer, preferences: Preferences, say: Callable[[str], None]) -> Measured:
    """Score all answers, and compare with the labels.

    Raises:
        UserError: no row fits into the model's context, or a score is not finite.
    """
    rows = preferences.rows
    say(f"scoring {sum(len(row['completions']) for row in rows):,} answers to {len(rows):,} prompts")
    scored = scorer.score(rows)
    if not scored:
        raise UserError(
            f"--data: none of the {len(rows)} rankings fits into {scorer.name} ({scorer.about}). Raise "
            "--max-length, or give shorter texts."
        )
    for one in scored:
        if not all(map(math.isfinite, one.rewards)):
            raise UserError(
                f"{rows[one.row]['where']}: {scorer.name} gives an answer a score that is NaN or infinite. "
                "Its weights are damaged, or too large for their type."
            )
    keys = [prompt_key(rows[one.row]["prompt"]) for one in scored]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    prompts = [numbers[key] for key in keys]
    words = crossed_words(scored, prompts)
    rankings = [
        _ranking(last_text(rows[one.row]["prompt"]), one, of_one)
        for one, of_one in zip(scored, words, strict=True)
    ]
    subsets = [preferences.subsets[one.row] for one in scored] if preferences.subsets else []
    ids = [preferences.ids[one.row] if preferences.ids else "" for one in scored]
    counts = {
        "rows_read": preferences.read,
        "rows_left_out": preferences.left_out,
        "rows_too_long": len(rows) - len(scored),
        "rows_scored": len(scored),
        "prompts": len(numbers),
    }
    return Measured(
        report=reward_report(rankings, _noise(preferences), prompts) | _votes(preferences),
        subsets=_by_subset(rankings, subsets),
        sections=_sections(rankings, subsets, ids),
        rankings=rankings,
        counts=counts,
        notes=[
            *preferences.notes,
            *_remarks(counts, len(rows)),
            *_unpaired(subsets, ids),
            *_about_votes(preferences),
        ],
    )


def _noise(preferences: Preferences) -> Noise | None:
    """The agreement of two people, if a row is one person's label and enough prompts have several."""
    agreement = preferences.judges_agree
    return Noise("two people", agreement) if agreement and has_interval(agreement) else None


def _votes(preferences: Preferences) -> dict[str, dict[str, Figure]]:
    """As `votes`, the agreement of voters and the ceiling of accuracy against their majority, if known."""
    agreement = preferences.voters_agree
    if agreement is None:
        return {}
    return {"votes": {"agreement": agreement, "ceiling": ceiling_of_agreed(agreement)}}


def _about_votes(preferences: Preferences) -> list[str]:
    if not (votes := _votes(preferences).get("votes")):
        return []
    return [
        f"two annotators agree on {show_known(votes['agreement'])} of the pairs that both order (n = "
        f"{votes['agreement']['n']:.0f} prompts). The labels are their majorities. By their agreement, a "
        f"model could be right about at most {show_known(votes['ceiling'])}."
    ]


def _ranking(prompt: str, row: ScoredRow, words: list[float]) -> ScoredRanking:
    values = asdict(row)
    del values["row"]
    return ScoredRanking(prompt=prompt, words=words, **values)


def _remarks(counts: dict[str, int], rows: int) -> list[str]:
    if not counts["rows_too_long"]:
        return []
    return [f"left out {counts['rows_too_long']:,} of {rows:,} rankings that are too long (--max-length)"]


def crossed_words(scored: Sequence[ScoredRow], prompts: Sequence[int]) -> list[list[float]]:
    """Scores of a bag of words that learned from the other prompts: five fits, each for a fifth of them.

    There are no training rankings here, and a fit to what it is tested on would be no baseline. Empty if
    there are too few prompts.
    """
    if len(set(prompts)) < FEWEST:
        return [[] for _ in scored]
    found: list[list[float]] = [[] for _ in scored]
    for fold in range(FOLDS):
        train = [one for one, prompt in zip(scored, prompts, strict=True) if prompt % FOLDS != fold]
        bag = BagOfWords([one.answers for one in train], [one.ranks for one in train])
        for place, (one, prompt) in enumerate(zip(scored, prompts, strict=True)):
            if prompt % FOLDS == fold:
                found[place] = bag.scores(one.answers)
    return found


def _by_subset(rankings: Sequence[ScoredRanking], subsets: Sequence[str]) -> dict[str, dict[str, Figure]]:
    """Figures of each subset, rows alike, and of all rows as `all`; of all alone without subsets."""
    names = sorted(set(subsets))
    parts = {
        name: [one for one, subset in zip(rankings, subsets, strict=True) if subset == name] for name in names
    }
    return {name: _figures(part) for name, part in (parts | {"all": list(rankings)}).items()}


def _figures(rankings: Sequence[ScoredRanking]) -> dict[str, Figure]:
    found = {"accuracy": figure([in_order(one) for one in rankings])}
    if any(len(one.ranks) > 2 for one in rankings):
        found["best_of_n"] = figure([picks_best(one) for one in rankings])
        found["separated"] = figure([separates(one) for one in rankings])
    return found


def _sections(
    rankings: Sequence[ScoredRanking], subsets: Sequence[str], ids: Sequence[str]
) -> dict[str, Figure]:
    """What the leaderboard of a published benchmark shows; empty for other data."""
    values: dict[str, list[float]] = {}
    if is_reward_bench(subsets):
        for ranking, subset in zip(rankings, subsets, strict=True):
            values.setdefault(subset, []).append(in_order(ranking))
        return section_means(values)
    if not is_reward_bench_2(rankings, subsets):
        return {}
    for ranking, subset in zip(rankings, subsets, strict=True):
        if subset != TIES:
            values.setdefault(subset, []).append(picks_best(ranking))
    values[TIES] = [ties_score(rankings[one], rankings[several]) for one, several in ties_pairs(ids)]
    return subset_means(values) if any(values.values()) else {}


def _unpaired(subsets: Sequence[str], ids: Sequence[str]) -> list[str]:
    """A remark on rows of RewardBench 2's Ties that are not there with one right answer and with several."""
    ties = subsets.count(TIES)
    alone = ties - 2 * len(ties_pairs(ids))
    if not alone:
        return []
    return [f"{TIES}: {alone} of {ties} rows have no partner (`id`: ref:N, tied:N), and no score"]
