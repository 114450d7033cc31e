"""Rankings that people gave on the page of `tristage collect rankings`, for the reward model's stage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from configs.errors import UserError
from data.people.agreement import ordered_agreement_of_tasks
from data.people.results import Row, first_labels, ranking_row, rankings
from data.people.round import FOLDER, Round, read_round
from stages.context import Context
from stages.feedback.rankings import write_rankings
from stages.maths.bradley_terry import bradley_terry
from stages.maths.orders import ranks_of
from stages.maths.statistics import mean_with_interval

TIE = 1e-6  # nats


def take_rankings(context: Context) -> None:
    """Copy what people gave so far to `folder/rankings.jsonl`, as a labeller's rankings stand there.

    Later rankings do not change what a stage trains on once it has begun.

    Raises:
        UserError: the round is missing or damaged, or has no ranking.
    """
    if context.ranks.rank == 0:
        content = read_round(context.folder.parent / FOLDER / "rankings")
        rows = rankings(content)
        if not rows:
            raise UserError(f"{content.folder}: people have not ranked anything there yet.")
        if context.config.rm.rankings.merge == "bradley_terry":
            merged = merge(content)
            context.tracker.note(f"merged {len(rows)} rankings by people into {len(merged)}, one a prompt")
            rows = merged
        figures = _figures(content)
        if "label_agreement" not in figures:
            context.tracker.note(
                "no two people ordered the same answers, so how well they agree, which bounds the accuracy, "
                "is not known. With tristage collect rankings --overlap, everyone gets a share of the prompts"
            )
        write_rankings(context.folder, rows, figures)
    context.ranks.barrier()


def merge(content: Round) -> list[Row]:
    """One row for each prompt, from the rankings that all people gave of it.

    Each ranking prefers the better answer of each pair, and a tie counts half a preference each way. All of
    them together imply a score of each answer (`bradley_terry`). Answers are ranked by score; scores that
    are equal up to TIE tie, as those of two answers that are preferred equally often do.
    """
    given: dict[str, dict[str, tuple[int, ...]]] = {}
    for showing, label in first_labels(content):
        if label.ranks:
            given.setdefault(showing.task, {})[showing.labeller] = label.ranks
    rows = []
    for task, by_person in given.items():
        scores = bradley_terry(np.sum([_preferences(ranks) for ranks in by_person.values()], axis=0))
        rounded = [round(float(score) / TIE) for score in scores]
        shown = [number * TIE for number in rounded]
        rows.append(ranking_row(content, task, ranks_of(rounded), ", ".join(by_person), shown))
    return rows


def _preferences(ranks: Sequence[int]) -> np.ndarray:
    """(K, K) 1 if i is ranked above j, 1/2 if they tie, else 0; 0 on the diagonal."""
    of = np.asarray(ranks)
    preferred = (of[:, None] < of[None, :]) + 0.5 * (of[:, None] == of[None, :])
    np.fill_diagonal(preferred, 0)
    return preferred


def _figures(content: Round) -> dict[str, float]:
    """How many people gave the rankings, and how well they agree.

    `label_agreement` is that of two people on a pair of answers that both order, a mean over prompts with its
    interval. It bounds the accuracy of a reward model (see `ceiling_of`), which is over the pairs that a
    person orders, too.
    """
    labels, agreement = content.labels, ordered_agreement_of_tasks(content)
    return {
        "people": len({showing.labeller for showing, _ in labels.submitted()}),
        "prompts_skipped": len({showing.task for showing, _ in labels.skipped()}),
        **(mean_with_interval("label_agreement", agreement) if agreement else {}),
    }
