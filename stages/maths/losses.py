"""The losses of the three stages as pure functions of tensors.

A loss is the sum of its terms divided by `normalizer`, the number of terms in the global batch. So the parts
of a batch, cut into micro-batches and ranks, add up to the same loss. Metrics are `Mean`s: the sum and
the number of terms of the part. `(B, T)` tensors are per token; masks are True on tokens
that count.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.maths.statistics import Mean, Means


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of `values` under `mask`; values outside it, NaN included, have no effect."""
    return torch.where(mask, values, 0.0).sum()


def masked_mean(values: Tensor, mask: Tensor) -> Mean:
    """Mean of `values` over the tokens under `mask`, detached."""
    return Mean(masked_sum(values.detach(), mask), mask.sum())


def nll_loss(logprobs: Tensor, mask: Tensor, normalizer: float) -> Tensor:
    """Negative log-likelihood of the completion tokens, averaged over tokens.

    Args:
        logprobs: (B, T) log-probabilities of the tokens.
        mask: (B, T) True on completion tokens.
        normalizer: completion tokens in the global batch.
    """
    return -masked_sum(logprobs, mask) / normalizer


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_range: float,
    normalizer: float,
    dual_clip: float | None = None,
) -> tuple[Tensor, Means]:
    """PPO's clipped surrogate (Schulman et al. 2017, equation 7), negated, averaged over tokens.

    `dual_clip` bounds the ratio's effect on negative advantages (Ye et al. 2020, equation 5): one token that
    has become far likelier cannot dominate the update. A loss takes tensors and numbers, no config object,
    hence seven parameters.

    Args:
        logprobs, old_logprobs, advantages: (B, T); `old_logprobs` of the policy that sampled.
        mask: (B, T) True on response tokens.
        normalizer: response tokens in the global minibatch.

    Returns:
        The loss, and means over tokens: `loss`, `ratio`, `clipfrac` (the clipped branch is larger) and
        `approxkl` (k2 of Schulman 2020: half the squared log ratio).
    """
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    per_token = torch.maximum(unclipped, clipped)
    if dual_clip is not None:
        per_token = torch.where(advantages < 0, per_token.minimum(-dual_clip * advantages), per_token)
    metrics = {
        "loss": masked_mean(per_token, mask),
        "ratio": masked_mean(ratio, mask),
        "clipfrac": masked_mean((clipped > unclipped).float(), mask),
        "approxkl": masked_mean(0.5 * log_ratio.square(), mask),
    }
    return masked_sum(per_token, mask) / normalizer, metrics


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip_range: float | None,
    normalizer: float,
) -> tuple[Tensor, Means]:
    """Clipped squared error of the critic, 1/2 max((v - R)^2, (clip(v) - R)^2), averaged over tokens.

    Values stay within `clip_range` of the old ones, as in the original PPO code (Huang et al. 2022, "The 37
    implementation details of PPO", detail 9). With None they are not clipped.

    Args:
        values, old_values, returns: (B, T).
        mask: (B, T) True on response tokens.
        normalizer: response tokens in the global minibatch.

    Returns:
        The loss, and means over tokens: `loss` and `clipfrac`.
    """
    values = torch.where(mask, values, 0.0)  # or a NaN outside the mask would be one in the gradient
    limit = float("inf") if clip_range is None else clip_range
    clipped_values = torch.clamp(values, old_values - limit, old_values + limit)
    unclipped = (values - returns).square()
    clipped = (clipped_values - returns).square()
    per_token = 0.5 * torch.maximum(unclipped, clipped)
    metrics = {
        "loss": masked_mean(per_token, mask),
        "clipfrac": masked_mean((clipped > unclipped).float(), mask),
    }
    return masked_sum(per_token, mask) / normalizer, metrics
