"""The speed of a PPO iteration: tokens per second, and the share of the machine's arithmetic in use."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PreTrainedModel

from stages.rl.experience import ExperienceCollector
from stages.rl.ptx import Ptx
from stages.training.throughput import forward_flops, matmul_flops

PHASES = ("rollout", "score", "update")


class IterationSpeed:
    """Compares an iteration's operations, padding aside, with what a large matrix product reaches here."""

    def __init__(self, collector: ExperienceCollector, ptx: Ptx | None = None) -> None:
        self._collector, self._ptx = collector, ptx
        policy_base = collector.reward_model.models.policy_base
        self._peak_flops = matmul_flops(policy_base.causal.device, policy_base.dtype)

    def metrics(self, seconds: Mapping[str, float], tokens: int, updates: float) -> dict[str, float]:
        """`perf/tokens_per_second`, and `perf/matmul_share` if the layout of the model is known.

        Args:
            seconds: of each phase, as `time/PHASE`.
            tokens: of the prompts and responses of all ranks.
            updates: how many times each sequence was trained on.
        """
        total = sum(seconds[f"time/{phase}"] for phase in PHASES)
        speed = {"perf/tokens_per_second": tokens / total}
        flops = self._flops(tokens, updates)
        if flops is None:
            return speed
        world = self._collector.ranks.world
        return speed | {"perf/matmul_share": flops / world / total / self._peak_flops}

    def _flops(self, tokens: int, updates: float) -> float | None:
        collector, models = self._collector, self._collector.reward_model.models
        policy, reward = models.policy_base.causal, models.reward_base.causal
        length = tokens / collector.ppo.batch_size
        of_policy, of_reward = (forward_flops(base.config, tokens, length) for base in (policy, reward))
        if of_policy is None or of_reward is None:
            return None
        # Sampling, the reference's forward, the policy's own where it recomputes, and its updates.
        flops = of_policy * (2 + collector.recomputes_logprobs + updates * _forwards_per_update(policy))
        if collector.rewards.uses_reward_model:
            flops += of_reward * len(models.reward_members)
        if not collector.shared_critic:
            flops += of_reward * (1 + updates * _forwards_per_update(reward))  # 1: the old values
        if self._ptx:
            learned = forward_flops(policy.config, self._ptx.take_tokens(), self._ptx.length)
            flops += (learned or 0.0) * _forwards_per_update(policy)
        return flops


def _forwards_per_update(base: PreTrainedModel) -> int:
    """Forward and backward, and a second forward under gradient checkpointing, in forwards."""
    return 3 if base.is_gradient_checkpointing else 2
