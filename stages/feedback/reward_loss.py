"""The reward model's loss that `rm.loss` names, on the scores of ranked completions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from configs.errors import UserError
from configs.schema import RankingLoss
from data.batches.tokenize import Ranking
from data.sources.messages import Text, last_text
from stages.maths.ranking_losses import (
    plackett_luce_loss,
    ranking_loss,
    score_margins,
    smoothed,
    tied_shares,
    win_shares,
)
from stages.maths.statistics import Means


def reward_loss(
    config: RankingLoss, scores: Tensor, ranks: Tensor, labels: Tensor | None, normalizer: float
) -> tuple[Tensor, Means]:
    """The loss, and its means over prompts (see `ranking_loss`).

    Args:
        scores: (G, K) reward of each completion of G prompts.
        ranks: (G, K) 0 is best; equal ranks are ties; -1 marks a slot without completion.
        labels: (G, K) the labeller's scores, which `margin: scores` needs.
        normalizer: prompts in the global batch.
    """
    if config.kind == "plackett_luce":
        return plackett_luce_loss(scores, ranks, normalizer, config.center)
    wins = win_shares(ranks)
    if config.ties == "half":
        wins = wins + tied_shares(ranks)
    if config.label_smoothing:
        wins = smoothed(wins, config.label_smoothing)
    margins = None
    if config.margin == "scores":
        assert labels is not None, "check_labels refuses rankings without scores"
        margins = score_margins(labels, ranks, config.margin_scale).to(scores.dtype)
    return ranking_loss(scores, ranks, normalizer, wins, margins, config.center)


def labels_of(rankings: Sequence[Ranking], device: torch.device) -> Tensor | None:
    """The labeller's scores of each prompt's completions, (G, K), 0 in an empty slot; None without scores."""
    rows = [ranking.labels for ranking in rankings if ranking.labels is not None]
    if len(rows) < len(rankings):
        return None
    tensors = [torch.tensor(row, dtype=torch.float64, device=device) for row in rows]
    return pad_sequence(tensors, batch_first=True)


def check_labels(config: RankingLoss, rankings: Sequence[tuple[Text, Sequence[float] | None]]) -> None:
    """Raise UserError if margins need scores that a ranking, given as prompt and scores, does not have."""
    without = [prompt for prompt, scores in rankings if scores is None]
    if config.margin == "scores" and without:
        raise UserError(
            f"rm.loss.margin: scores, but {len(without):,} of {len(rankings):,} rankings have no scores. One "
            f"has the prompt {last_text(without[0])[:60]!r}. Give each row `scores`, or set "
            "rm.loss.margin to none."
        )


def ties_note(config: RankingLoss, rankings: Sequence[Ranking]) -> str | None:
    """How many rankings have a tied pair, if ties count; else None."""
    if config.ties == "ignore":
        return None
    tied = sum(len(set(ranking.ranks)) < len(ranking.ranks) for ranking in rankings)
    return f"rm.loss.ties: half. {tied:,} of {len(rankings):,} training rankings have a tied pair"
