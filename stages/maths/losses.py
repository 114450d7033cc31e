"""The losses of the three stages as pure functions of tensors.

Every loss is a sum over its terms divided by `normalizer`, the number of terms in the whole global
batch: however a batch is cut into micro-batches and ranks, the parts add up to the same loss.
`(B, T)` tensors are per token, masks are True where a token counts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Metrics = dict[str, Tensor]


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of `values` where `mask` is True; what stands elsewhere, NaN included, has no effect."""
    return torch.where(mask, values, 0.0).sum()


def nll_loss(logprobs: Tensor, mask: Tensor, normalizer: float) -> Tensor:
    """Negative log-likelihood of the completion tokens, averaged over tokens.

    Args:
        logprobs: (B, T) log-probabilities of the tokens.
        mask: (B, T) True on completion tokens.
        normalizer: completion tokens in the global batch.
    """
    return -masked_sum(logprobs, mask) / normalizer


def ranking_loss(scores: Tensor, ranks: Tensor, normalizer: float) -> tuple[Tensor, Metrics]:
    """K-wise ranking loss: -1/C(K,2) * sum of log sigmoid(r_w - r_l), averaged over prompts.

    Ouyang et al. 2022, equation 1; with K = 2 the pairwise loss of Bradley-Terry. Pairs of equal rank
    are no preference: they are left out of the sum and of the count of pairs.

    Args:
        scores: (G, K) reward of each completion of G prompts.
        ranks: (G, K) 0 is best; equal ranks are ties; -1 marks a slot without completion.
        normalizer: prompts in the global batch.

    Returns:
        The loss, and sums over the G prompts of `loss`, `accuracy` (share of pairs in the right order)
        and `margin` (mean r_w - r_l).
    """
    real = (ranks[:, :, None] >= 0) & (ranks[:, None, :] >= 0)
    pairs = real & (ranks[:, :, None] < ranks[:, None, :])
    differences = torch.where(pairs, scores[:, :, None] - scores[:, None, :], 0.0)
    count = pairs.sum((1, 2)).clamp(min=1)

    def per_prompt(values: Tensor) -> Tensor:
        return torch.where(pairs, values, 0.0).sum((1, 2)) / count

    loss = per_prompt(-F.logsigmoid(differences))
    metrics = {
        "loss": loss.detach().sum(),
        "accuracy": per_prompt((differences > 0).float()).sum(),
        "margin": per_prompt(differences.detach()).sum(),
    }
    return loss.sum() / normalizer, metrics


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_range: float,
    normalizer: float,
    dual_clip: float | None = None,
) -> tuple[Tensor, Metrics]:
    """PPO's clipped surrogate (Schulman et al. 2017, equation 7), negated, averaged over tokens.

    Where the advantage is negative, `dual_clip` bounds the ratio's effect (Ye et al. 2020, equation 5): one
    token that has become far likelier cannot rule the update.

    Args:
        logprobs, old_logprobs, advantages: (B, T); `old_logprobs` of the policy that sampled.
        mask: (B, T) True on response tokens.
        normalizer: response tokens in the global minibatch.

    Returns:
        The loss, and sums over tokens of `ratio`, `clipfrac` (the clipped branch was the larger) and
        `approxkl` (k2 of Schulman 2020: half the squared log ratio).
    """
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    per_token = torch.maximum(unclipped, clipped)
    if dual_clip is not None:
        per_token = torch.where(advantages < 0, per_token.minimum(-dual_clip * advantages), per_token)
    loss = masked_sum(per_token, mask)
    metrics = {
        "ratio": masked_sum(ratio.detach(), mask),
        "clipfrac": masked_sum((clipped > unclipped).float(), mask),
        "approxkl": masked_sum(0.5 * log_ratio.detach().square(), mask),
    }
    return loss / normalizer, metrics


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip_range: float | None,
    normalizer: float,
) -> tuple[Tensor, Metrics]:
    """Clipped squared error of the critic, 1/2 max((v - R)^2, (clip(v) - R)^2), averaged over tokens.

    Values are kept within `clip_range` of the old ones, as in the original PPO code (Huang et al. 2022,
    "The 37 implementation details of PPO", detail 9); with None they are not clipped.

    Args:
        values, old_values, returns: (B, T).
        mask: (B, T) True on response tokens.
        normalizer: response tokens in the global minibatch.

    Returns:
        The loss, and the sum over tokens of `clipfrac`.
    """
    values = torch.where(mask, values, 0.0)  # or a NaN outside the mask would be one in the gradient
    room = float("inf") if clip_range is None else clip_range
    clipped_values = torch.clamp(values, old_values - room, old_values + room)
    unclipped = (values - returns).square()
    clipped = (clipped_values - returns).square()
    loss = 0.5 * masked_sum(torch.maximum(unclipped, clipped), mask)
    return loss / normalizer, {"clipfrac": masked_sum((clipped > unclipped).float(), mask)}
