"""PPO's experience: responses of the policy, with their log-probabilities, values and reward terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from configs.schema import Ppo
from data.batches import tokenize
from data.batches.sampler import micro_batches, seed_from
from stages.feedback.reward_model import RewardModel
from stages.feedback.rewards import Rewards
from stages.maths.ensembles import deviation
from stages.models.roles import Role
from stages.rl.trajectory import Trajectory
from stages.sampling.decoding import Response
from stages.sampling.response_batch import ResponseBatch, response_logprobs, response_statistics, state_values
from stages.sampling.rollout_engine import matches_training_model
from stages.sampling.sampler import Sampler


@dataclass(frozen=True)
class RoleOutputs:
    """What the roles compute for a micro-batch: (b, >= R) each.

    Attributes:
        logprobs: None if those of the sampling engine serve, which saves a forward.
    """

    ref_logprobs: Tensor
    logprobs: Tensor | None
    values: Tensor


class ExperienceCollector:
    """Rolls out prompts and scores the responses.

    Attributes:
        shared_critic: the critic is a head on the policy, whose forward gives log-probabilities and values.
        recomputes_logprobs: the training model computes the log-probabilities again. Otherwise those of the
            sampling engine serve, which is one forward less.
    """

    def __init__(self, ppo: Ppo, sampler: Sampler, reward_model: RewardModel, seed: int) -> None:
        self.ppo, self.sampler, self.reward_model, self.seed = ppo, sampler, reward_model, seed
        self.ranks = sampler.ranks
        self.rewards = Rewards(ppo.rewards)
        self.shared_critic = ppo.critic == "shared"
        self._measures_disagreement = self.rewards.uses_reward_model and reward_model.is_ensemble
        self.recomputes_logprobs = (
            self.shared_critic
            or ppo.old_logprobs == "recomputed"
            or not matches_training_model(sampler.roles, ppo.rollout)
        )

    def share(self, batch: int) -> list[int]:
        """Indices of this rank's prompts in a batch: its share of each minibatch."""
        minibatches = micro_batches(range(batch), batch // self.ppo.minibatches)
        return [row for minibatch in minibatches for row in self.ranks.share(minibatch)]

    def roll_out(self, step: int, prompts: Sequence[tokenize.Prompt]) -> list[Response]:
        """One response of the policy to each of this rank's prompts.

        Args:
            prompts: the global batch. The noise of a response depends only on seed, step, index and prompt.
        """
        rows = self.share(len(prompts))
        ids = [prompts[row].prompt_ids for row in rows]
        seeds = [seed_from(self.seed, "rollout", step, row, prompts[row].prompt_ids) for row in rows]
        return self.sampler.respond(Role.POLICY, ids, seeds)

    @torch.no_grad()
    def score(self, prompts: Sequence[tokenize.Prompt], responses: list[Response]) -> Trajectory:
        """Log-probabilities, values and reward terms of this rank's `responses`.

        The micro-batches are those of the first epoch's updates. Equal forwards give equal values, and, if
        log-probabilities are recomputed, a first ratio of exactly 1.

        Args:
            prompts: the global batch.

        Returns:
            This rank's rows.
        """
        mine = [prompts[row] for row in self.share(len(prompts))]
        longest = max(len(response.ids) for response in responses)
        logprobs, ref_logprobs, values = (torch.zeros(len(mine), longest) for _ in range(3))
        scores, disagreement = torch.zeros(2, len(mine), dtype=torch.float64)
        sampled = _stack([torch.tensor(response.logprobs) for response in responses], longest)
        for share in micro_batches(range(len(mine)), len(mine) // self.ppo.minibatches):
            for rows in self.by_length(share, mine, responses):
                batch = self.sampler.response_batch(
                    [mine[row].prompt_ids for row in rows], [responses[row] for row in rows]
                )
                outputs = self._role_outputs(batch)
                if outputs.logprobs is not None:
                    _write_rows(logprobs, rows, outputs.logprobs, batch.mask)
                _write_rows(ref_logprobs, rows, outputs.ref_logprobs, batch.mask)
                _write_rows(values, rows, outputs.values, batch.mask)
                if self.rewards.uses_reward_model:
                    answers = [responses[row] for row in rows]
                    of_members = self.reward_model.of_members([mine[row] for row in rows], answers)
                    scores[rows] = self.reward_model.combine(of_members).double().cpu()
                    disagreement[rows] = deviation(of_members).double().cpu()
        return Trajectory(
            prompts=mine,
            responses=responses,
            sampled_logprobs=sampled,
            logprobs=logprobs if self.recomputes_logprobs else sampled,
            ref_logprobs=ref_logprobs,
            values=values,
            terms=self._terms(mine, responses, scores),
            disagreement=disagreement if self._measures_disagreement else None,
        )

    def gather(self, mine: Trajectory, batch: int) -> Trajectory:
        """The rows of all ranks, in the order of the batch's prompts. Every rank must call."""
        rows = self.ranks.gather(self.share(batch))
        together = Trajectory.join(self.ranks.gather([mine]))
        return together.select(sorted(range(batch), key=lambda place: rows[place]))

    def by_length(
        self, rows: Sequence[int], prompts: Sequence[tokenize.Prompt], responses: Sequence[Response]
    ) -> list[list[int]]:
        """Rows as they go through the model together: sorted by length, so that little is padding."""

        def length(row: int) -> int:
            return len(prompts[row].prompt_ids) + len(responses[row].ids)

        return micro_batches(sorted(rows, key=length), self.ppo.micro_batch_size)

    def _role_outputs(self, batch: ResponseBatch) -> RoleOutputs:
        models = self.reward_model.models
        ref_logprobs = response_logprobs(models, Role.REFERENCE, batch.untruncated)
        if self.shared_critic:
            policy = response_statistics(models, Role.POLICY, batch, values=Role.CRITIC)
            return RoleOutputs(ref_logprobs, policy.logprobs, policy.values)
        return RoleOutputs(
            ref_logprobs,
            logprobs=response_logprobs(models, Role.POLICY, batch) if self.recomputes_logprobs else None,
            values=state_values(models, Role.CRITIC, batch),
        )

    def _terms(
        self, prompts: Sequence[tokenize.Prompt], responses: Sequence[Response], scores: Tensor
    ) -> dict[str, Tensor]:
        """The terms of the reward by name, (B,) in float64; `scores` are the reward model's."""
        texts = self.sampler.decode([response.ids for response in responses])
        others = self.rewards([prompt.text for prompt in prompts], texts)
        terms = dict.fromkeys(self.rewards.of_reward_model, scores)
        return terms | {name: torch.tensor(values, dtype=torch.float64) for name, values in others.items()}

    def sample_rows(self, trajectory: Trajectory, scores: Tensor) -> list[dict[str, Any]]:
        """One row per response for people to read."""
        texts = self.sampler.decode([response.ids for response in trajectory.responses])
        columns = zip(trajectory.prompts, texts, scores.tolist(), trajectory.kl.tolist(), strict=True)
        return [
            {"prompt": prompt.text, "response": text, "score": score, "kl": kl}
            for prompt, text, score, kl in columns
        ]


def _write_rows(column: Tensor, rows: Sequence[int], output: Tensor, mask: Tensor) -> None:
    """Write `output`, 0 outside `mask` (b, R), into `rows` of `column`."""
    width = mask.shape[1]
    column[rows, :width] = torch.where(mask, output[:, :width], 0.0).cpu()


def _stack(rows: Sequence[Tensor], length: int) -> Tensor:
    """Rows of different lengths as (B, length), padded on the right with 0."""
    return torch.stack([torch.nn.functional.pad(row, (0, length - len(row))) for row in rows])
