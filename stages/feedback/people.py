"""Rankings that people gave on the page of `tristage collect rankings`, for the reward model's stage."""

from __future__ import annotations

from configs.errors import UserError
from data.people.agreement import agreement_of_tasks
from data.people.results import rankings
from data.people.round import FOLDER, Round, read_round
from stages.context import Context
from stages.feedback.rankings import FILE, write_sealed
from stages.maths.statistics import mean_with_interval


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
        write_sealed(context.folder / FILE, rows, _figures(content))
    context.ranks.barrier()


def _figures(content: Round) -> dict[str, float]:
    """How many people gave the rankings, and how well they agree.

    `label_agreement` is that of two people on a pair of answers, a mean over prompts with its interval. A
    reward model cannot be expected to agree with people better than they do with each other.
    """
    labels, agreement = content.labels, agreement_of_tasks(content)
    return {
        "people": len({showing.labeller for showing, _ in labels.submitted()}),
        "prompts_skipped": len({showing.task for showing, _ in labels.skipped()}),
        **(mean_with_interval("label_agreement", agreement) if agreement else {}),
    }
