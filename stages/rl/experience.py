"""PPO's experience: responses of the policy, what the four roles and the rewards say of them, advantages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from configs.schema import Ppo
from data.batches import tokenize
from data.batches.sampler import micro_batches, seed_from
from stages.feedback.reward_model import RewardModel
from stages.feedback.rewards import Rewards, shape_rewards
from stages.maths.advantages import gae, next_kl_coef, scale, token_rewards, whiten
from stages.rl.trajectory import Sample, padded, put, token_mask
from stages.sampling.response_batch import ResponseBatch, response_logprobs, response_statistics, state_values
from stages.sampling.sampler import Sampler
from stages.training.throughput import Stopwatch

POLICY, REFERENCE, CRITIC = "policy", "reference", "critic"


class Experience:
    """Collects experience; from `collect` on all ranks hold the whole batch of samples.

    `memory` goes into checkpoints: `kl_coef` where it adapts, `reward_moments` where rewards are normalised.
    """

    def __init__(
        self, ppo: Ppo, sampler: Sampler, reward_model: RewardModel, seed: int, memory: dict[str, Any]
    ) -> None:
        self.ppo, self.sampler, self.reward_model, self.seed, self.memory = (
            ppo,
            sampler,
            reward_model,
            seed,
            memory,
        )
        self.ranks, self.tokenizer = sampler.ranks, sampler.tokenizer
        self.kl_coef = ppo.kl_coef  # of the batch in hand
        self.rewards = Rewards(ppo.rewards)
        self.shared_head = CRITIC if ppo.critic == "shared" else None
        # What a shared critic says comes from the same forward.
        self.recomputes = (
            bool(self.shared_head) or ppo.old_logprobs == "recomputed" or not sampler.same_to_rounding
        )
        # The critic does not change between its scoring of a rollout and its first update on it, if that is
        # on all of it. A shared critic's values come of the policy's forward, whose loss awaits advantages.
        self.values_from_training = ppo.minibatches == 1 and not self.shared_head

    def collect(self, step: int, prompts: Sequence[tokenize.Prompt]) -> tuple[list[Sample], dict[str, float]]:
        """Roll out `prompts` (the global batch), score the responses, and estimate advantages.

        Where `values_from_training` there are no values yet, and so no advantages: those come of
        `take_values` with each forward of the critic's first update, and of `share_values` after them all.

        Returns:
            The samples of all ranks, in the order of `prompts`, and the iteration's metrics.
        """
        watch, times = Stopwatch(), {}
        mine = self.roll_out(step, prompts)
        times["time/rollout"] = watch.lap()
        self.score(mine)
        times["time/score"] = watch.lap()
        samples = sorted(self.ranks.gather(mine), key=lambda sample: sample.index)
        figures = self.assign_rewards(samples)
        if not self.values_from_training:
            self.estimate_advantages(samples)
        self._adapt_kl_coef(step, figures["objective/kl"], len(samples))
        return samples, times | figures

    def roll_out(self, step: int, prompts: Sequence[tokenize.Prompt]) -> list[Sample]:
        """Sample a response to each of this rank's prompts; the noise is a function of seed, step, prompt."""
        samples = [Sample(i, prompt) for i, prompt in enumerate(prompts)]
        mine = [sample for minibatch in self.minibatches(samples) for sample in self.ranks.share(minibatch)]
        seeds = [seed_from(self.seed, "rollout", step, s.index, s.prompt_ids) for s in mine]
        responses = self.sampler.respond(POLICY, [s.prompt_ids for s in mine], seeds)
        for sample, response in zip(mine, responses, strict=True):
            sample.response = response
        return mine

    def minibatches(self, samples: list[Sample]) -> list[list[Sample]]:
        return micro_batches(samples, len(samples) // self.ppo.minibatches)

    def micro_batches(self, share: list[Sample]) -> list[list[Sample]]:
        """A rank's share of a minibatch as it goes through the model: by length, to have little padding."""
        by_length = sorted(share, key=lambda sample: len(sample.prompt_ids) + len(sample.response_ids))
        return micro_batches(by_length, self.ppo.micro_batch_size)

    @torch.no_grad()
    def score(self, mine: list[Sample]) -> None:
        """Let the roles look at the responses: policy and critic only where nothing else tells what they say.

        The micro-batches are those of the first epoch's updates: equal forwards give old values and the first
        new ones, and old and new log-probabilities where they are recomputed, whose first ratio is exactly 1.
        """
        models = self.reward_model.models
        for share in micro_batches(mine, len(mine) // self.ppo.minibatches):
            for micro in self.micro_batches(share):
                batch = self.response_batch(micro)
                self._ask_policy_and_critic(micro, batch)
                put(micro, "ref_logprobs", response_logprobs(models, REFERENCE, batch))
                if self.rewards.uses_reward_model:
                    for one, score in zip(micro, self._scores(micro).tolist(), strict=True):
                        one.rewards |= dict.fromkeys(self.rewards.of_reward_model, score)
        texts = self.sampler.decode([one.response_ids for one in mine])
        for name, found in self.rewards([one.prompt.text for one in mine], texts).items():
            for one, value in zip(mine, found, strict=True):
                one.rewards[name] = value

    def _ask_policy_and_critic(self, micro: list[Sample], batch: ResponseBatch) -> None:
        models = self.reward_model.models
        if self.shared_head:
            figures = response_statistics(models, POLICY, batch, values=self.shared_head)
            put(micro, "logprobs", figures.logprobs)
            put(micro, "values", figures.values)
            return
        if not self.values_from_training:
            put(micro, "values", state_values(models, CRITIC, batch))
        if self.recomputes:
            put(micro, "logprobs", response_logprobs(models, POLICY, batch))
        else:
            for one in micro:
                one.logprobs = one.sampled_logprobs

    def _scores(self, samples: list[Sample]) -> Tensor:
        return self.reward_model([s.prompt for s in samples], [s.response for s in samples])

    def assign_rewards(self, samples: list[Sample]) -> dict[str, float]:
        """Scores and per-token rewards over the whole batch; fills score and token_rewards."""
        ppo = self.ppo
        logprobs, mask = padded(samples, "logprobs"), token_mask(samples)
        ref_logprobs = padded(samples, "ref_logprobs")
        ended = torch.tensor([s.response_ids[-1] == self.tokenizer.eos_token_id for s in samples])
        totals = torch.tensor([self.rewards.total(s.rewards) for s in samples])
        scores = shape_rewards(totals, mask.sum(1), ended, ppo, self.memory)
        self.kl_coef = float(self.memory.get("kl_coef", ppo.kl_coef))
        kl_coef = self.kl_coef if ppo.kl_in == "reward" else 0.0
        rewards = token_rewards(scores, logprobs, ref_logprobs, mask, kl_coef, ppo.kl_estimator)
        non_score = rewards.sum(1) - scores
        put(samples, "token_rewards", scale(rewards, mask) if ppo.whiten_rewards else rewards)
        for one, score in zip(samples, scores, strict=True):
            one.score = float(score)
        terms = {
            f"rewards/{name}/mean": sum(s.rewards[name] for s in samples) / len(samples)
            for name in self.rewards.weights
        }
        return {
            "objective/kl": sum(s.kl for s in samples) / len(samples),
            "objective/kl_coef": self.kl_coef,
            "objective/entropy": -float(logprobs[mask].mean()),
            "objective/scores": float(scores.mean()),
            "objective/non_score_reward": float(non_score.mean()),
            "objective/rlhf_reward": float((scores + non_score).mean()),
            **terms,
            "completions/mean_length": float(mask.sum(1).float().mean()),
            "completions/clipped_ratio": 1 - float(ended.float().mean()),
        }

    def take_values(self, samples: list[Sample], values: Tensor) -> None:
        """Keep the values (B, R + 1) of some of this rank's samples as the old ones; fills returns, too."""
        put(samples, "values", values.detach())
        self._estimate(samples)

    def share_values(self, samples: list[Sample], mine: list[Sample]) -> None:
        """Estimate advantages once `mine`, this rank's part of all samples, has taken its values."""
        for index, values in self.ranks.gather([(one.index, one.values) for one in mine]):
            samples[index].values = values
        self.estimate_advantages(samples)

    def estimate_advantages(self, samples: list[Sample]) -> None:
        """GAE and whitening over the whole batch; fills advantages and returns."""
        self._estimate(samples)
        if self.ppo.whiten_advantages:
            put(samples, "advantages", whiten(padded(samples, "advantages"), token_mask(samples)))

    def _estimate(self, samples: list[Sample]) -> None:
        rewards, values = padded(samples, "token_rewards"), padded(samples, "values")
        advantages, returns = gae(rewards, values, token_mask(samples), self.ppo.gamma, self.ppo.lam)
        put(samples, "advantages", advantages)
        put(samples, "returns", returns)

    def _adapt_kl_coef(self, step: int, kl: float, responses: int) -> None:
        """Move an adaptive coefficient on for the next batch, unless the policy stands still."""
        ppo = self.ppo
        if ppo.kl_target and step >= ppo.critic_warmup and math.isfinite(kl):
            self.memory["kl_coef"] = next_kl_coef(self.kl_coef, kl, ppo.kl_target, responses, ppo.kl_horizon)

    def response_batch(self, samples: list[Sample]) -> ResponseBatch:
        return self.sampler.response_batch([s.prompt_ids for s in samples], [s.response for s in samples])

    def readable(self, samples: list[Sample]) -> list[dict[str, Any]]:
        """Samples as rows for people."""
        texts = self.sampler.decode([s.response_ids for s in samples])
        return [
            {"prompt": s.prompt.text, "response": text, "score": s.score, "kl": s.kl}
            for s, text in zip(samples, texts, strict=True)
        ]
