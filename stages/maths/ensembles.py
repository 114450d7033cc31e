"""One score of several reward models, and how far they disagree (Coste et al. and Eisenstein et al. 2023)."""

from __future__ import annotations

from torch import Tensor


def combined(scores: Tensor, how: str, coef: float = 1.0) -> Tensor:
    """One score of each answer, (B,).

    Args:
        scores: (M, B) of M members. Each is on a scale where the SFT policy has mean 0 and deviation 1.
        how: mean (Coste et al. 2023, section 2.3); min, their worst-case optimisation; or
            mean_minus_deviation, mean − coef · deviation (Eisenstein et al. 2023, section 4).
    """
    if how == "min":
        return scores.amin(0)
    mean = scores.mean(0)
    return mean - coef * deviation(scores) if how == "mean_minus_deviation" else mean


def deviation(scores: Tensor) -> Tensor:
    """Standard deviation of the members about their mean, per answer: (M, B) to (B,); 0 for one member."""
    return scores.std(0, correction=0)


def standardized(scores: Tensor) -> Tensor:
    """Scores of each member with mean 0 and deviation 1 over the answers: (M, B) to (M, B).

    Raw scores have scales and offsets of their own, which are no disagreement. Equal scores become 0.
    """
    spread = scores.std(1, correction=0, keepdim=True)
    centred = scores - scores.mean(1, keepdim=True)
    return (centred / spread.clamp(min=1e-12)).where(spread > 0, 0.0)
