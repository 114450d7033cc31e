"""One optimizer step of PPO: policy and critic on a minibatch of experience."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from configs.schema import Ppo
from stages.maths.advantages import gae, token_kl, whiten_signal
from stages.maths.losses import masked_mean, masked_sum, policy_loss, value_loss
from stages.maths.statistics import Means, add_means
from stages.models.roles import Role
from stages.models.token_statistics import TokenStatistics
from stages.rl.experience import ExperienceCollector
from stages.rl.kl_controller import KlController
from stages.rl.ptx import Ptx
from stages.rl.trajectory import Experience, Trajectory
from stages.sampling.response_batch import ResponseBatch, response_statistics, state_values
from stages.training.engine import Engine
from stages.training.metrics import reduce_means

LOGPROB_DIFFERENCE = "rollout/logprob_difference"


class PpoUpdate:
    """Updates policy and critic on minibatches of the global batch."""

    def __init__(
        self,
        engine: Engine,
        ppo: Ppo,
        collector: ExperienceCollector,
        kl: KlController,
        ptx: Ptx | None = None,
    ) -> None:
        self.engine, self.ppo, self.collector, self.kl, self.ptx = engine, ppo, collector, kl, ptx

    def step(self, experience: Experience, minibatch: Sequence[int]) -> dict[str, float]:
        """Take one optimizer step. While the engine holds the policy, its gradient is 0.

        Args:
            experience: the global batch.
            minibatch: indices of its rows to train on.

        Returns:
            Metrics, means over the response tokens of the minibatch.
        """
        mine = self.engine.ranks.share(list(minibatch))
        tokens = int(experience.lengths[list(minibatch)].sum())
        if self.collector.shared_critic:
            means = add_means(
                self._shared_backward(micro, tokens) for micro in self._micro_batches(experience, mine)
            )
        else:
            means = add_means(
                self._critic_backward(micro, tokens) for micro in self._micro_batches(experience, mine)
            )
            means |= add_means(
                self._policy_backward(micro, tokens) for micro in self._micro_batches(experience, mine)
            )
        if self.ptx and not self.engine.is_held(Role.POLICY):
            means["loss/ptx_avg"] = self.ptx.backward()
        self.engine.step()
        metrics = reduce_means(means, self.engine.ranks)
        return metrics | {"grad_norm": self.engine.grad_norm}

    def _micro_batches(self, experience: Experience, rows: Sequence[int]) -> Iterator[Experience]:
        return map(
            experience.select, self.collector.by_length(rows, experience.prompts, experience.responses)
        )

    def _batch(self, micro: Experience) -> ResponseBatch:
        prompt_ids = [prompt.prompt_ids for prompt in micro.prompts]
        return self.collector.sampler.response_batch(prompt_ids, micro.responses)

    def _critic_backward(self, micro: Experience, tokens: int) -> Means:
        batch = self._batch(micro)
        values = state_values(self.engine, Role.CRITIC, batch)[:, :-1]
        loss, means = self._critic_loss(micro, batch, tokens, values)
        self.engine.backward(self.ppo.vf_coef * loss)
        return means

    def _policy_backward(self, micro: Experience, tokens: int) -> Means:
        batch = self._batch(micro)
        statistics = response_statistics(self.engine, Role.POLICY, batch, entropy=self._with_entropy)
        loss, means = self._policy_loss(micro, batch, tokens, statistics)
        self.engine.backward(self._policy_weight * loss)
        return means

    def _shared_backward(self, micro: Experience, tokens: int) -> Means:
        """One forward and backward for policy and critic. A held policy's trunk learns nothing."""
        batch = self._batch(micro)
        statistics = response_statistics(
            self.engine,
            Role.POLICY,
            batch,
            entropy=self._with_entropy,
            values=Role.CRITIC,
            detach_values=self.engine.is_held(Role.POLICY),
        )
        loss, means = self._policy_loss(micro, batch, tokens, statistics)
        critic_loss, critic_means = self._critic_loss(micro, batch, tokens, statistics.values[:, :-1])
        self.engine.backward(self._policy_weight * loss + self.ppo.vf_coef * critic_loss)
        return means | critic_means

    @property
    def _policy_weight(self) -> float:
        return 0.0 if self.engine.is_held(Role.POLICY) else 1.0

    @property
    def _with_entropy(self) -> bool:
        return self.ppo.entropy_coef > 0

    def _policy_loss(
        self, micro: Experience, batch: ResponseBatch, tokens: int, statistics: TokenStatistics
    ) -> tuple[Tensor, Means]:
        """The clipped surrogate, with the KL and the entropy bonus if the config puts them into the loss."""
        ppo, logprobs, mask = self.ppo, statistics.logprobs, batch.mask
        device = logprobs.device
        loss, surrogate = policy_loss(
            logprobs,
            micro.logprobs.to(device),
            micro.advantages.to(device),
            mask,
            ppo.clip_range,
            tokens,
            ppo.dual_clip,
        )
        difference = (logprobs.detach() - micro.sampled_logprobs.to(device)).abs()
        means = {
            "loss/policy_avg": surrogate["loss"],
            "val/ratio": surrogate["ratio"],
            "policy/clipfrac_avg": surrogate["clipfrac"],
            "policy/approxkl_avg": surrogate["approxkl"],
            LOGPROB_DIFFERENCE: masked_mean(difference, mask),
        }
        if ppo.kl_in == "loss":
            kl = token_kl(logprobs, micro.ref_logprobs.to(device), ppo.kl_estimator)
            loss = loss + self.kl.coef * masked_sum(kl, mask) / tokens
            means["loss/kl_avg"] = masked_mean(kl, mask)
        if self._with_entropy:
            loss = loss - ppo.entropy_coef * masked_sum(statistics.entropy, mask) / tokens
        return loss, means

    def _critic_loss(
        self, micro: Experience, batch: ResponseBatch, tokens: int, values: Tensor
    ) -> tuple[Tensor, Means]:
        """The clipped squared error to the returns of the old values; `values` are (b, R)."""
        _, returns = gae(micro.rewards, micro.values, micro.mask, self.ppo.gamma, self.ppo.lam)
        loss, means = value_loss(
            values,
            micro.values.to(values.device),
            returns.to(values.device),
            batch.mask,
            self.ppo.clip_range_value,
            tokens,
        )
        return loss, {"loss/value_avg": means["loss"], "val/clipfrac_avg": means["clipfrac"]}


def estimate_advantages(trajectory: Trajectory, rewards: Tensor, ppo: Ppo) -> Tensor:
    """(B, R) advantages: GAE on the whole batch, whitened by `whiten_signal` if `whiten_advantages` is set.

    Args:
        rewards: (B, R) of the tokens.
    """
    advantages, _ = gae(rewards, trajectory.values, trajectory.mask, ppo.gamma, ppo.lam)
    return whiten_signal(advantages, rewards, trajectory.mask) if ppo.whiten_advantages else advantages
