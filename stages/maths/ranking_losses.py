"""The reward model's losses on rankings, as pure functions of tensors.

G is the number of prompts, K the largest number of completions of one. A rank is 0 for the best completion.
Equal ranks tie, and -1 marks a slot without completion. Like the losses of `stages.maths.losses`, each loss
divides its sum by `normalizer`, so micro-batches and ranks add up to the same loss.

A pair of completions enters a loss through its win shares: W_ij is the share of the pair that i wins against
j. So W_ij + W_ji = 1 if the pair counts, and both are 0 if it does not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.maths.statistics import Mean, Means


def ranking_loss(
    scores: Tensor,
    ranks: Tensor,
    normalizer: float,
    wins: Tensor | None = None,
    margins: Tensor | None = None,
    center: float = 0.0,
) -> tuple[Tensor, Means]:
    """K-wise ranking loss: -1/C(K,2) * sum of log sigmoid(r_w - r_l), averaged over prompts.

    Ouyang et al. 2022, equation 1; with K = 2 the pairwise loss of Bradley-Terry. Completions of equal rank
    express no preference: their pairs are left out of the sum and of the count.

    With win shares W and margins m it is -1/sum(W) * sum of W_ij log sigmoid(r_i - r_j - m_ij).

    Args:
        scores: (G, K) reward of each completion of G prompts.
        ranks: (G, K) 0 is best; equal ranks are ties; -1 marks a slot without completion.
        normalizer: prompts in the global batch.
        wins: (G, K, K) win shares; default: `win_shares(ranks)`.
        margins: (G, K, K) the least difference that a pair should have (see `score_margins`); default: 0.
        center: weight of `centering`.

    Returns:
        The loss, and means over the G prompts: `loss`, `accuracy` (share of pairs in the right order),
        `margin` (mean r_w - r_l) and `mean_reward` (mean score of the completions). Tied pairs count in the
        loss alone.
    """
    wins = win_shares(ranks) if wins is None else wins
    counted = wins > 0
    differences = torch.where(counted, scores[:, :, None] - scores[:, None, :], 0.0)
    if margins is not None:
        differences = differences - margins
    losses = _mean_of_pairs(-F.logsigmoid(differences), wins)
    if center:
        losses = losses + center * centering(scores, wins)
    return losses.sum() / normalizer, _means(losses, scores, ranks)


def plackett_luce_loss(
    scores: Tensor, ranks: Tensor, normalizer: float, center: float = 0.0
) -> tuple[Tensor, Means]:
    """Negative log-likelihood of whole rankings, per choice, averaged over prompts.

    A ranking is a sequence of choices: the best of all, the best of the rest, and so on. Each is a softmax:
    -1/(K-1) * sum over i of log(exp(r_i) / sum of exp(r_j) over j = i and all j worse than i). See Luce 1959;
    Plackett 1975; as a loss ListMLE (Xia et al. 2008), which sums over the choices. With K = 2 it is the
    pairwise loss.

    Tied completions do not compete: each is chosen from itself and the worse ones. By Luce's axiom, the
    presence of others does not matter to such a choice.

    Args:
        scores: (G, K) reward of each completion of G prompts.
        ranks: (G, K) 0 is best; equal ranks are ties; -1 marks a slot without completion.
        normalizer: prompts in the global batch.
        center: weight of `centering` over the pairs of different rank.

    Returns:
        The loss and the means of `ranking_loss`.
    """
    worse = win_shares(ranks) > 0
    finite = torch.where(ranks >= 0, scores, 0.0)
    rivals = worse | torch.eye(ranks.shape[1], dtype=torch.bool, device=ranks.device)
    rival_scores = finite[:, None, :].masked_fill(~rivals, -torch.inf)
    choices = rival_scores.logsumexp(2) - finite  # exactly 0 if nothing is worse
    losses = choices.sum(1) / worse.any(2).sum(1).clamp(min=1)
    if center:
        losses = losses + center * centering(scores, win_shares(ranks))
    return losses.sum() / normalizer, _means(losses, scores, ranks)


def win_shares(ranks: Tensor) -> Tensor:
    """(G, K) ranks to (G, K, K) win shares: 1 if the row is ranked better than the column, else 0."""
    real = ranks >= 0
    pairs = real[:, :, None] & real[:, None, :] & (ranks[:, :, None] < ranks[:, None, :])
    return pairs.float()


def tied_shares(ranks: Tensor) -> Tensor:
    """(G, K) ranks to (G, K, K) win shares of tied pairs: 1/2 each way, as a draw in chess (Elo 1978)."""
    real = ranks >= 0
    ties = real[:, :, None] & real[:, None, :] & (ranks[:, :, None] == ranks[:, None, :])
    return 0.5 * ties.float().triu(1) + 0.5 * ties.float().tril(-1)


def smoothed(wins: Tensor, label_smoothing: float) -> Tensor:
    """(G, K, K) win shares if that part of the labels is wrong: (1 - e) W_ij + e W_ji.

    With them the loss is -(1 - e) log sigmoid(d) - e log sigmoid(-d), as in cDPO (Mitchell 2023). It is
    least at d = log((1 - e) / e), not at infinity.
    """
    return (1 - label_smoothing) * wins + label_smoothing * wins.transpose(1, 2)


def score_margins(labels: Tensor, ranks: Tensor, scale: float) -> Tensor:
    """Margins scale * (s_w - s_l) of the labeller's scores s; 0 for tied pairs.

    Touvron et al. 2023 (Llama 2), equation 2, whose margin is a step function of four grades of preference.

    Args:
        labels: (G, K) the labeller's scores, more is better. Slots without completion hold any number.
        ranks: (G, K) 0 is best; equal ranks are ties; -1 marks a slot without completion.

    Returns:
        (G, K, K) for rows that are ranked better than the column; 0 elsewhere.
    """
    differences = labels[:, :, None] - labels[:, None, :]
    return torch.where(win_shares(ranks) > 0, scale * differences, 0.0)


def centering(scores: Tensor, wins: Tensor) -> Tensor:
    """Mean of (r_i + r_j)^2 over the pairs that count, of each prompt: (G,).

    Eisenstein et al. 2023, who add it to the pairwise loss, so that scores have mean 0. With K completions it
    is the mean over the same pairs as the loss.

    Args:
        scores: (G, K).
        wins: (G, K, K) win shares.
    """
    sums = torch.where(wins > 0, scores[:, :, None] + scores[:, None, :], 0.0)
    return _mean_of_pairs(sums.square(), wins)


def _mean_of_pairs(values: Tensor, wins: Tensor) -> Tensor:
    """Mean of (G, K, K) values over the pairs of each prompt, by win share: (G,); 0 without pairs."""
    return torch.where(wins > 0, wins * values, 0.0).sum((1, 2)) / wins.sum((1, 2)).clamp(min=1)


def _means(losses: Tensor, scores: Tensor, ranks: Tensor) -> Means:
    """The metrics of (G,) losses and of the order of the (G, K) scores."""
    scores, wins, real = scores.detach(), win_shares(ranks), ranks >= 0
    differences = torch.where(wins > 0, scores[:, :, None] - scores[:, None, :], 0.0)
    metrics = {
        "loss": losses.detach(),
        "accuracy": _mean_of_pairs((differences > 0).float(), wins),
        "margin": _mean_of_pairs(differences, wins),
        "mean_reward": torch.where(real, scores, 0.0).sum(1) / real.sum(1).clamp(min=1),
    }
    return {name: Mean(values.sum(), len(scores)) for name, values in metrics.items()}
