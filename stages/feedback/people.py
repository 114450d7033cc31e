"""Rankings that people gave on the page of `tristage collect rankings`, for the reward model's stage."""

from __future__ import annotations

import json
from pathlib import Path

from configs.errors import UserError
from data.people.agreement import agreement_of_tasks
from data.people.results import rankings
from data.people.round import FOLDER, Round, read_round
from data.storage.files import write_text
from stages.context import Context
from stages.feedback.rankings import FILE, write_sealed
from stages.maths.statistics import mean_with_interval

FIGURES = "people.json"  # in the stage's folder: how many people gave the rankings, and how well they agree


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
        write_text(context.folder / FIGURES, json.dumps(_figures(content), indent=1) + "\n")
        write_sealed(context.folder / FILE, rows)
    context.ranks.barrier()


def people_figures(folder: Path) -> dict[str, float]:
    """The stage's metrics of people; empty if no people ranked.

    `label_agreement` is that of two people on a pair of answers, a mean over prompts with its interval. A
    reward model cannot be expected to agree with people better than they do with each other.
    """
    file = folder / FIGURES
    figures: dict[str, float] = json.loads(file.read_text()) if file.is_file() else {}
    return figures


def _figures(content: Round) -> dict[str, float]:
    labels, agreement = content.labels, agreement_of_tasks(content)
    return {
        "people": len({showing.labeller for showing, _ in labels.submitted()}),
        "prompts_skipped": len({showing.task for showing, _ in labels.skipped()}),
        **(mean_with_interval("label_agreement", agreement) if agreement else {}),
    }
