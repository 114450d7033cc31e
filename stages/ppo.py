"""Stage 3, PPO against a reward model or other rewards (Schulman et al. 2017; Ouyang et al. 2022, eq. 2)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from configs.errors import UserError
from configs.schema import Ppo
from data.batches import tokenize
from data.batches.sampler import epoch_order, micro_batches, seed_from
from data.examples import once_each, read_examples
from stages.context import Context, Outcome
from stages.feedback.evaluation import HeldOutEvaluation
from stages.feedback.reward_model import RewardModel
from stages.feedback.rewards import RewardShaper
from stages.maths.advantages import explained_variance, gae, reward_signal, scale, token_rewards
from stages.models.base import disable_dropout
from stages.models.reward_members import add_members
from stages.models.role_models import RoleModels
from stages.models.roles import Role, Roles
from stages.models.start_adapters import add_start
from stages.rl.experience import ExperienceCollector
from stages.rl.kl_controller import KlController
from stages.rl.policy_snapshots import LastGoodPolicy, PolicyAverage
from stages.rl.ptx import Ptx, make_ptx
from stages.rl.speed import IterationSpeed
from stages.rl.trajectory import Experience, Trajectory
from stages.rl.update import LOGPROB_DIFFERENCE, PpoUpdate, estimate_advantages
from stages.sampling.sampler import Sampler, open_sampler
from stages.setup import add_given, prepare
from stages.training.checkpoint import Stateful
from stages.training.engine import Engine
from stages.training.export import save_role
from stages.training.loop import StopTraining, TrainingLoop
from stages.training.resume import find_checkpoint, seed_step, start_engine
from stages.training.same_rows import ROWS, check_rows
from stages.training.soundness import check_result
from stages.training.throughput import Meter, Stopwatch, cost

Metrics = dict[str, float]
Rows = list[dict[str, Any]]


def run(context: Context) -> Outcome:
    """Train the `policy` adapter against the reward and write it to `folder/adapter`."""
    config, ppo = context.config, context.config.ppo

    # 1. Four roles on one base, or on two.
    ranks, models = context.ranks, prepare(context)
    tokenizer = models.tokenizer
    add_roles(context, models)

    # 2. Prompts.
    train, held_out, counts = read_examples(context.data("ppo"), "prompts", tokenize.prompts, tokenizer)
    held_out = once_each(held_out, context.tracker.note)

    # 3. The engine and the loop, at the newest checkpoint if there is one.
    critic_rate = ppo.critic_learning_rate or ppo.learning_rate
    rates: dict[str, float] = {Role.POLICY: ppo.learning_rate, Role.CRITIC: critic_rate}
    checkpoint = find_checkpoint(context)
    seen = check_rows(context, checkpoint, train, held_out)
    updates = ppo.iterations * ppo.epochs * ppo.minibatches
    engine = start_engine(context, models, rates, ppo, updates, checkpoint)
    with open_sampler(models.policy_base, tokenizer, ranks, ppo.rollout) as sampler:
        reward_model = RewardModel(models, ranks, config.data, ppo.ensemble, ppo.ensemble_coef)
        ptx = make_ptx(context, engine, tokenizer)
        trainer = PpoTrainer(engine, ppo, sampler, reward_model, context.seed, ptx)
        parts = trainer.parts | {ROWS: seen}
        loop = TrainingLoop(context, ppo, engine, trainer.meter, ppo.iterations, parts)
        loop.resume(checkpoint)
        evaluation = HeldOutEvaluation(context, sampler, reward_model, trainer.collector.rewards, held_out)

        # 4. Iterations: roll out, score, advantages, update, log.
        def take_step(step: int, picks: list[int]) -> Metrics:
            skipped = engine.counters.skipped
            metrics, samples = trainer.iterate(step, [train[i] for i in picks])
            if engine.counters.skipped > skipped:
                context.tracker.samples(samples, step + 1)  # one of them is the cause
            elif (step + 1) % ppo.logging_steps == 0:
                context.tracker.samples(samples[: config.tracking.sample_rows], step + 1)
            return metrics

        _, after = loop.run(len(train), take_step, evaluation.evaluate_policy)
        check_result("ppo", engine, updates, after)

        # 5. The result, judged on held-out prompts beside the base and the SFT policy.
        stopped = loop.progress.stopped is not None
        if trainer.average:
            trainer.average.save(context, tokenizer, ppo.use_ema)
            if ppo.use_ema:
                evaluation.evaluate_policy()  # the average is the policy now
        else:
            save_role(context, engine, Role.POLICY, tokenizer)
        return Outcome(
            {
                **evaluation.compare_policies(),
                **counts,
                "stopped_early": float(stopped),
                **cost(trainer.meter, ranks, loop.progress.step - stopped),
            },
            models.policy_base.base_digest,
            tokenize.is_chat(train[0].prompt, config.data),
            models.policy_base.compute_dtype,
        )


def add_roles(context: Context, models: RoleModels) -> None:
    """Add policy, reference and critic, and the reward model if it is a term of the reward."""
    add_policies(context, models.policy_base)
    if context.config.ppo.uses_reward_model:
        add_members(models.reward_base, context.inputs["rm"])
    add_critic(context, models)
    disable_dropout(models)  # the ratio compares two forwards of one policy


def add_policies(context: Context, base: Roles) -> None:
    """Add policy and reference, and SFT's policy for the final comparison if it is not the reference."""
    ppo, sft = context.config.ppo, context.inputs["sft"]
    if ppo.start:
        add_given(context, base, Role.POLICY)
    else:
        base.add_from(Role.POLICY, sft, trainable=True)
    if ppo.start and ppo.reference == "from":
        add_start(base, Role.REFERENCE, "ppo.from", Path(ppo.start), trainable=False)
        base.add_from(Role.SFT, sft, trainable=False)
    else:
        base.add_from(Role.REFERENCE, sft, trainable=False)


def add_critic(context: Context, models: RoleModels) -> None:
    """Add the critic: adapter and head of the reward model, or a head on the policy's own hidden states."""
    if context.config.ppo.critic == "adapter":
        models.reward_base.add_from(Role.CRITIC, context.inputs["rm"], trainable=True)
    elif models.shares_base and "rm" in context.config.upstream("ppo"):
        models.policy_base.add_head_from(Role.CRITIC, context.inputs["rm"])
    else:  # there is no reward model, or its head reads the hidden states of another base
        seed_step(context.seed, "critic head", 0, 0)
        models.policy_base.add_head(Role.CRITIC)


class PpoTrainer:
    """PPO iterations: experience of the policy as it is, then epochs of updates on it.

    Attributes:
        parts: what checkpoints hold of it.
    """

    def __init__(
        self,
        engine: Engine,
        ppo: Ppo,
        sampler: Sampler,
        reward_model: RewardModel,
        seed: int,
        ptx: Ptx | None = None,
    ) -> None:
        self.engine, self.ppo, self.seed, self.meter = engine, ppo, seed, Meter()
        self.collector = ExperienceCollector(ppo, sampler, reward_model, seed)
        self.kl, self.shaper = KlController(ppo), RewardShaper(ppo)
        self.update = PpoUpdate(engine, ppo, self.collector, self.kl, ptx)
        self.average = PolicyAverage(engine, ppo.ema_decay) if ppo.ema_decay else None
        self.last_good = LastGoodPolicy(engine, self.average) if ppo.max_kl is not None else None
        self.speed = IterationSpeed(self.collector, ptx)
        self.end_of_turn = sampler.tokenizer.eos_token_id
        self.parts: dict[str, Stateful] = {"kl": self.kl, "rewards": self.shaper}
        self.parts |= {"average": self.average} if self.average else {}
        self.parts |= {"last_good": self.last_good} if self.last_good else {}

    def iterate(self, step: int, prompts: Sequence[tokenize.Prompt]) -> tuple[Metrics, Rows]:
        """Train on one rollout of `prompts`, the global batch.

        Returns:
            The iteration's metrics, and its samples for people to read.

        Raises:
            StopTraining: the KL is above `max_kl`; the policy is the last one below it again.
            UserError: the KL is above `max_kl` before any update.
        """
        ppo, collector, watch = self.ppo, self.collector, Stopwatch()

        # 1. Roll out: the policy answers each of this rank's prompts once.
        responses = collector.roll_out(step, prompts)
        seconds = {"time/rollout": watch.lap()}

        # 2. Score: log-probabilities of policy and reference, values of the critic, terms of the reward.
        mine = collector.score(prompts, responses)
        seconds["time/score"] = watch.lap()
        trajectory = collector.gather(mine, len(prompts))  # the rows of all ranks

        # 3. Advantages: the KL penalty and the score become rewards of tokens; GAE discounts them.
        ended = torch.tensor([response.ids[-1] == self.end_of_turn for response in trajectory.responses])
        totals = collector.rewards.total(trajectory.terms).float()
        scores = self.shaper.shape(totals, trajectory.lengths, ended)
        kl_coef = self.kl.coef if ppo.kl_in == "reward" else 0.0
        rewards = token_rewards(
            scores, trajectory.logprobs, trajectory.ref_logprobs, trajectory.mask, kl_coef, ppo.kl_estimator
        )
        metrics = self._objective(trajectory, scores, rewards.sum(1) - scores, ended)
        if ppo.whiten_rewards:
            rewards = scale(rewards, trajectory.mask)
        advantages = estimate_advantages(trajectory, rewards, ppo)
        experience = Experience(**vars(trajectory), scores=scores, rewards=rewards, advantages=advantages)
        self._limit_kl(metrics | seconds)

        # 4. Update: an optimizer step of policy and critic on each minibatch of each epoch.
        watch.lap()
        learning_rate, updates = self._update(step, experience)
        seconds["time/update"] = watch.lap()
        if self.average:
            self.average.update()
        if step >= ppo.critic_warmup:  # the coefficient has no effect on a policy that is held
            self.kl.update(metrics["objective/kl"], len(trajectory))

        # 5. Log.
        tokens = trajectory.tokens
        self.meter.add(tokens)
        metrics |= {name: sum(row[name] for row in updates) / len(updates) for name in updates[0]}
        # Before the first update, the policy is the one that was sampled from.
        metrics[LOGPROB_DIFFERENCE] = updates[0][LOGPROB_DIFFERENCE]
        metrics |= {"learning_rate": learning_rate, "policy/updates": len(updates)}
        metrics |= self._advantage_metrics(experience)
        metrics |= seconds | self.speed.metrics(seconds, tokens, len(updates) / ppo.minibatches)
        return metrics, collector.sample_rows(trajectory, scores)

    def _objective(
        self, trajectory: Trajectory, scores: torch.Tensor, non_score: torch.Tensor, ended: torch.Tensor
    ) -> Metrics:
        """Means over responses, but for the entropy's estimate, which is a mean over tokens.

        Args:
            scores, non_score: (B,) the score of a response, and the sum of its KL penalties.
            ended: (B,) True if a response ended its turn.
        """
        support_size, disagreement = trajectory.support_size, trajectory.disagreement
        return {
            "objective/kl": float(trajectory.kl.mean()),
            "objective/kl_coef": self.kl.coef,
            "objective/entropy": -float(trajectory.logprobs[trajectory.mask].mean()),
            "objective/scores": float(scores.mean()),
            "objective/non_score_reward": float(non_score.mean()),
            "objective/rlhf_reward": float((scores + non_score).mean()),
            **{f"rewards/{name}/mean": float(term.mean()) for name, term in trajectory.terms.items()},
            **({} if disagreement is None else {"rewards/rm/disagreement": float(disagreement.mean())}),
            "completions/mean_length": float(trajectory.lengths.float().mean()),
            "completions/clipped_ratio": 1 - float(ended.float().mean()),
            **({} if support_size is None else {"rollout/support_size": support_size}),
        }

    def _limit_kl(self, metrics: Metrics) -> None:
        """Remember the policy while its KL is within `max_kl`; else restore the last good one, and stop.

        Raises:
            StopTraining: see `iterate`.
            UserError: the policy that PPO starts from is above the limit.
        """
        if self.last_good is None or self.ppo.max_kl is None:
            return
        kl, limit = metrics["objective/kl"], self.ppo.max_kl
        if kl <= limit:
            self.last_good.remember()
        elif not self.last_good.is_known and kl > limit:
            start = " Or set ppo.reference to from." if self.ppo.start and self.ppo.reference == "sft" else ""
            raise UserError(
                f"ppo.max_kl: the policy starts {kl:.4g} nats per response from {self.ppo.reference_name}, "
                f"above {limit:g}. Raise the limit.{start}"
            )
        else:  # above, or not a number
            self.last_good.restore()
            message = f"the KL is {kl:.4g} nats per response, not within ppo.max_kl, {limit:g}"
            raise StopTraining(message, metrics)

    def _update(self, step: int, experience: Experience) -> tuple[float, list[Metrics]]:
        """Take the optimizer steps of all epochs; they end early once the policy has moved too far.

        Returns:
            The policy's learning rate, and each step's metrics.
        """
        if step < self.ppo.critic_warmup:
            self.engine.hold(Role.POLICY)
        else:
            self.engine.release(Role.POLICY)
        learning_rate, updates = self.engine.learning_rate(Role.POLICY), list[Metrics]()
        for minibatch in self._minibatches(step, len(experience)):
            metrics = self.update.step(experience, minibatch)
            updates.append(metrics)
            if metrics["policy/approxkl_avg"] > (self.ppo.max_approxkl or math.inf):
                break
            if not math.isfinite(metrics["grad_norm"]):
                break  # whitening has spread one reward that is not finite over all advantages
        return learning_rate, updates

    def _minibatches(self, step: int, size: int) -> Iterator[list[int]]:
        """The rows of each minibatch; the first epoch keeps the order in which responses were scored."""
        for epoch in range(self.ppo.epochs):
            shuffled = epoch_order(size, seed_from(self.seed, "minibatches", step), epoch)
            yield from micro_batches(shuffled if epoch else range(size), size // self.ppo.minibatches)

    def _advantage_metrics(self, experience: Experience) -> Metrics:
        """What the critic explains of the returns, and what the rewards are in the advantages."""
        rewards, values, mask = experience.rewards, experience.values, experience.mask
        advantages, returns = gae(rewards, values, mask, self.ppo.gamma, self.ppo.lam)
        explained = float(explained_variance(values, returns, mask))
        metrics = {} if math.isnan(explained) else {"val/explained_variance": explained}
        if len(experience) > 1:  # one response has nothing to vary from
            metrics["objective/reward_signal"] = float(reward_signal(advantages, rewards, mask))
        return metrics
