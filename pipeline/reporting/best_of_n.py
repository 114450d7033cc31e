"""Best of n beside PPO: what the reward model achieves without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from configs.schema import Ppo
from pipeline.reporting.reward_words import is_reward_model
from pipeline.state.rows import Row


class Point(NamedTuple):
    """The best of n on the axes of PPO: its KL in nats per response, and its score."""

    n: int
    kl: float
    score: float


def best_points(rows: Sequence[Row], measure: str, ppo: Ppo, kl_sft: float) -> list[Point]:
    """The best of each n, as far as it can be compared with PPO.

    PPO's KL must be to SFT, and its score the one that picks: of an ensemble, the mean of the members.

    Args:
        measure: `gold`, or what PPO optimises.
        kl_sft: of SFT's samples to its full distribution, above 0 with top-k or top-p. PPO's KL is to that
            distribution. The best of n is chosen among samples, and about so much further away from it.
    """
    if ppo.reference != "sft" or (
        measure != "gold" and not (is_reward_model(ppo) and ppo.ensemble == "mean")
    ):
        return []
    score = "gold" if measure == "gold" else "rm_score"
    return [Point(row["n"], row["kl"] + kl_sft, row[score]) for row in rows if row.get(score) is not None]
