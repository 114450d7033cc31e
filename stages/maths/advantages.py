"""From scores to advantages: per-token rewards with a KL penalty, GAE, whitening. Pure functions.

Tensors are `(B, T)` over response tokens, left-aligned: a response fills the first positions of its row, and
`mask` is True there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

MIN_SIGNAL = 0.1  # of the advantages' deviation


def token_kl(logprobs: Tensor, ref_logprobs: Tensor, estimator: str) -> Tensor:
    """Estimate of KL(pi || pi_ref) from each token that pi sampled: (B, T), in nats.

    Schulman 2020, "Approximating KL divergence", with d = log pi - log pi_ref. `k1` is d, unbiased. `k3` is
    exp(-d) - 1 + d: unbiased too, never negative, and of lower variance.

    Args:
        logprobs, ref_logprobs: (B, T).
        estimator: "k1" or "k3".
    """
    difference = logprobs - ref_logprobs
    return difference if estimator == "k1" else torch.expm1(-difference) + difference


def next_kl_coef(kl_coef: float, kl: float, target: float, responses: int, horizon: float) -> float:
    """The adaptive KL coefficient after a batch (Ziegler et al. 2019, section 2.2).

    beta' = beta * (1 + e * n / horizon), e = clip((KL - target) / target, -0.2, 0.2)

    Args:
        kl, target: nats per response.
        responses: n, the size of the batch.
        horizon: responses after which the coefficient has changed by the factor 1 + e.
    """
    error = min(max((kl - target) / target, -0.2), 0.2)
    return kl_coef * (1 + error * responses / horizon)


def token_rewards(
    scores: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    kl_coef: float,
    estimator: str = "k1",
) -> Tensor:
    """Reward of each token: -kl_coef * KL (see `token_kl`), and the score on the last token.

    Ouyang et al. 2022, equation 2, in the per-token form of Ziegler et al. 2019.

    Args:
        scores: (B,) one score per response.
        logprobs, ref_logprobs: (B, T).
        mask: (B, T); every row has at least one token.

    Returns:
        (B, T), 0 outside the mask.
    """
    rewards = torch.where(mask, -kl_coef * token_kl(logprobs, ref_logprobs, estimator), 0.0)
    last = mask.sum(1) - 1
    return rewards.scatter_add(1, last[:, None], scores[:, None].to(rewards.dtype))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16).

    A_t = delta_t + gamma * lam * A_{t+1}, with delta_t = r_t + gamma * V_{t+1} - V_t, and V = 0 after
    the last token.

    Args:
        rewards, values: (B, T).
        mask: (B, T).

    Returns:
        Advantages and returns (advantages + values), each (B, T), 0 outside the mask.
    """
    values = torch.where(mask, values, 0.0)
    rewards = torch.where(mask, rewards, 0.0)
    deltas = rewards + gamma * pad(values[:, 1:], (0, 1)) - values  # 0 outside the mask, which ends each row
    advantages = [torch.zeros_like(deltas[:, 0])]
    for delta in reversed(deltas.unbind(1)):
        advantages.append(delta + gamma * lam * advantages[-1])
    stacked = torch.stack(advantages[:0:-1], 1)
    return stacked, stacked + values


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale to mean 0 and standard deviation 1 over the mask; 0 outside it.

    Args:
        values: (B, T).
        mask: (B, T).
    """
    kept = values[mask]
    mean, variance = kept.mean(), kept.var(unbiased=False)
    return torch.where(mask, (values - mean) * torch.rsqrt(variance + 1e-8), 0.0)


def centre(values: Tensor, mask: Tensor) -> Tensor:
    """Shift to mean 0 over the mask; 0 outside it.

    Args:
        values: (B, T).
        mask: (B, T).
    """
    return torch.where(mask, values - values[mask].mean(), 0.0)


def whiten_signal(advantages: Tensor, rewards: Tensor, mask: Tensor) -> Tensor:
    """Whiten the advantages; 0 if the rewards hold no signal for them. Those of one response are centred.

    An advantage is what the rewards say plus the critic's error. If the responses' total rewards deviate by
    less than MIN_SIGNAL times the advantages' deviation, nearly all of it is the critic's error. Smaller
    advantages would not keep the policy from following it, because Adam undoes the scale of a gradient.

    Args:
        advantages: (B, T).
        rewards: (B, T), as in `gae`.
        mask: (B, T).
    """
    if len(rewards) == 1:  # nothing to compare it with
        return centre(advantages, mask)
    signal, whole = _deviations(advantages, rewards, mask)
    if signal < MIN_SIGNAL * whole:
        return torch.zeros_like(advantages)
    return whiten(advantages, mask)


def reward_signal(advantages: Tensor, rewards: Tensor, mask: Tensor) -> Tensor:
    """Deviation of the responses' total rewards / deviation of the advantages: what `whiten_signal` compares.

    Args:
        advantages: (B, T), not whitened.
        rewards: (B, T), as in `gae`.
        mask: (B, T).

    Returns:
        A scalar, at most 1; 0 if the rewards do not vary.
    """
    signal, whole = _deviations(advantages, rewards, mask)
    return torch.where(signal == 0, 0.0, signal / whole).clamp(max=1.0)


def _deviations(advantages: Tensor, rewards: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Of the responses' total rewards, and of the advantages."""
    totals = torch.where(mask, rewards, 0.0).sum(1)
    return totals.std(unbiased=False), advantages[mask].std(unbiased=False)


def scale(values: Tensor, mask: Tensor) -> Tensor:
    """Scale to standard deviation 1 over the mask, about the mean, which stays; 0 outside it.

    This is reward whitening (`whiten_rewards` in TRL's PPO). The sign of a reward has a meaning, so rewards
    are not shifted.

    Args:
        values: (B, T).
        mask: (B, T).
    """
    return torch.where(mask, whiten(values, mask) + values[mask].mean(), 0.0)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over the mask: 1 is a perfect critic, below 0 a harmful one.

    Args:
        values, returns: (B, T).
        mask: (B, T).

    Returns:
        A scalar; NaN if the returns, sums over T tokens, do not vary by more than they are rounded.
    """
    rounded = returns.shape[1] * torch.finfo(returns.dtype).eps
    values, returns = values[mask], returns[mask]
    variance = returns.var(unbiased=False)
    rounding = rounded**2 * (values**2 + returns**2).mean()
    explained = 1 - (returns - values).var(unbiased=False) / variance
    return explained.where(variance > rounding, torch.nan)
