"""Stage 3, PPO against the reward model (Schulman et al. 2017; Ouyang et al. 2022, equation 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor
from transformers import PreTrainedModel

from configs.schema import Ppo
from data.batches import tokenize
from data.batches.sampler import epoch_order, seed_from
from data.examples import read_examples
from stages.context import Context, Outcome
from stages.feedback.evaluation import HeldOutEvaluation
from stages.feedback.reward_model import ROLE as REWARD
from stages.feedback.reward_model import RewardModel
from stages.maths.advantages import explained_variance, token_kl
from stages.maths.losses import masked_sum, policy_loss, value_loss
from stages.models.base import disable_dropout
from stages.models.role_models import RoleModels
from stages.models.token_statistics import TokenStatistics
from stages.rl.experience import CRITIC, POLICY, REFERENCE, Experience
from stages.rl.policy_snapshots import PREFIX, save_with_average, update_average
from stages.rl.ptx import Ptx, make_ptx
from stages.rl.trajectory import Sample, padded, token_mask
from stages.sampling.response_batch import ResponseBatch, response_statistics, state_values
from stages.sampling.sampler import Sampler
from stages.setup import prepare
from stages.training.engine import Engine
from stages.training.export import save_role
from stages.training.loop import Progress, Stop, find_resume, run_steps, seed_step, start_engine
from stages.training.throughput import Meter, Stopwatch, forward_flops, matmul_flops, peak_memory_bytes

GOOD = "good/"  # of what the engine keeps: the policy of the last rollout within `max_kl`
DIFFERENCE = "rollout/logprob_difference"
PER_TOKEN = {"val/ratio", "policy/clipfrac_avg", "policy/approxkl_avg", "val/clipfrac_avg", DIFFERENCE}


def run(context: Context) -> Outcome:
    """Train the `policy` adapter against the reward model and write it to `folder/adapter`."""
    config, ppo = context.config, context.config.ppo

    # 1. Four roles on one base, or on two.
    ranks, models = context.ranks, prepare(context)
    tokenizer = models.tokenizer
    models.policy_base.add_from(POLICY, context.inputs["sft"], trainable=True)
    models.policy_base.add_from(REFERENCE, context.inputs["sft"], trainable=False)
    models.reward_base.add_from(REWARD, context.inputs["rm"], trainable=False)
    add_critic(context, models)
    disable_dropout(models)  # the ratio compares what one policy says twice

    # 2. Prompts.
    train, held_out = read_examples(
        config, "ppo", "prompts", tokenize.prompts, tokenizer, context.tracker.note
    )

    # 3. The engine, where the last checkpoint left it.
    rates = {POLICY: ppo.learning_rate, CRITIC: ppo.critic_learning_rate or ppo.learning_rate}
    progress, checkpoint = Progress(ppo.iterations), find_resume(context, ranks)
    updates = ppo.iterations * ppo.epochs * ppo.minibatches
    engine = start_engine(context, models, rates, ppo, updates, ranks, progress, checkpoint)
    sampler = Sampler(models.policy_base, tokenizer, ranks, ppo.rollout)
    reward_model = RewardModel(models, ranks, config.data)
    experience = Experience(ppo, sampler, reward_model, context.seed, progress.memory)
    trainer = PpoTrainer(engine, ppo, experience, make_ptx(context, engine, tokenizer))
    evaluation = HeldOutEvaluation(context, sampler, reward_model, held_out)

    # 4. Iterations: roll out, score, update.
    def take_step(step: int, picks: list[int]) -> dict[str, float]:
        skipped = engine.skipped
        metrics, samples = trainer.iterate(step, [train[i] for i in picks])
        if engine.skipped > skipped:
            context.tracker.samples(samples, step + 1)  # what caused it
        elif (step + 1) % ppo.logging_steps == 0:
            context.tracker.samples(samples[: config.tracking.sample_rows], step + 1)
        return metrics

    run_steps(context, ppo, engine, progress, trainer.meter, len(train), take_step, evaluation.of_policy)

    # 5. The result, judged on held-out prompts beside the base and the SFT policy.
    stopped = "stopped" in progress.memory
    if ppo.ema_decay:
        save_with_average(context, engine, POLICY, tokenizer, ppo.use_ema)
        if ppo.use_ema:
            evaluation.of_policy()  # of the average, which is the policy now
    else:
        save_role(context, engine, POLICY, tokenizer)
    return Outcome(
        {
            **evaluation.final(),
            "steps": progress.step - stopped,
            "stopped_early": float(stopped),
            "tokens_per_second": trainer.meter.tokens_per_second,
            "peak_memory_bytes": ranks.max(peak_memory_bytes()),
        },
        models.policy_base.base_digest,
    )


def add_critic(context: Context, models: RoleModels) -> None:
    """The critic: adapter and head of the reward model, or a head on the policy's own hidden states."""
    if context.config.ppo.critic == "adapter":
        models.reward_base.add_from(CRITIC, context.inputs["rm"], trainable=True)
    elif models.shares_base:
        models.policy_base.add_head_from(CRITIC, context.inputs["rm"])
    else:  # the reward model's head reads the hidden states of another base
        seed_step(context.seed, "critic head", 0, 0)
        models.policy_base.add_head(CRITIC)


class PpoTrainer:
    """One PPO iteration: experience, then epochs of updates of policy and critic on it."""

    def __init__(self, engine: Engine, ppo: Ppo, experience: Experience, ptx: Ptx | None = None) -> None:
        self.engine, self.ppo, self.experience, self.ptx = engine, ppo, experience, ptx
        self.meter = Meter()
        roles = experience.sampler.roles
        self.matmul_flops = matmul_flops(roles.causal.device, roles.dtype)

    def iterate(self, step: int, prompts: Sequence[tokenize.Prompt]) -> tuple[dict[str, float], list[dict]]:
        """Gather experience from `prompts` (the global batch), and update on it.

        Returns:
            The iteration's metrics, and its samples for people to read.
        """
        samples, metrics = self.experience.collect(step, prompts)
        self._check_kl(metrics)
        watch = Stopwatch()
        metrics |= self.update(step, samples)
        metrics["time/update"] = watch.lap()
        values, returns = padded(samples, "values"), padded(samples, "returns")
        metrics["val/explained_variance"] = float(explained_variance(values, returns, token_mask(samples)))
        if self.ppo.ema_decay:
            update_average(self.engine, POLICY, self.ppo.ema_decay)
        tokens = sum(len(s.prompt_ids) + len(s.response_ids) for s in samples)
        self.meter.add(tokens)
        metrics |= self._achieved(metrics, tokens, len(samples))
        return metrics, self.experience.readable(samples)

    def _achieved(self, metrics: dict[str, float], tokens: int, sequences: int) -> dict[str, float]:
        """Tokens per second, and their operations, padding aside, over those of a pure matrix product."""
        experience, updates = self.experience, metrics["policy/updates"] / self.ppo.minibatches
        seconds = sum(metrics[f"time/{part}"] for part in ("rollout", "score", "update"))
        speed = {"perf/tokens_per_second": tokens / seconds}

        def trained(causal: PreTrainedModel) -> float:
            # Forward, backward, and forward again where asked.
            return updates * (3 if causal.is_gradient_checkpointing else 2)

        ours, theirs = (
            experience.reward_model.models.policy_base.causal,
            experience.reward_model.models.reward_base.causal,
        )
        our_flops, their_flops = (
            forward_flops(causal.config, tokens, tokens / sequences) for causal in (ours, theirs)
        )
        if our_flops is None or their_flops is None:
            return speed
        flops = our_flops * (2 + experience.recomputes + trained(ours))  # sampling, reference, policy
        flops += their_flops * experience.rewards.uses_reward_model
        if not experience.shared_head:
            flops += their_flops * ((not experience.values_from_training) + trained(theirs))
        return speed | {"perf/matmul_share": flops / self.engine.ranks.world / seconds / self.matmul_flops}

    def _check_kl(self, metrics: dict[str, float]) -> None:
        """Keep the policy while its KL is within `max_kl`; else go back to the last one kept, and stop."""
        kl, limit, kept = metrics["objective/kl"], self.ppo.max_kl, self.engine.kept
        if limit is None:
            return
        good = {name.removeprefix(GOOD): tensor for name, tensor in kept.items() if name.startswith(GOOD)}
        averages = {name for name in kept if name.startswith(PREFIX)}
        if not kl <= limit:  # or is no number
            # Before the first update the average is the policy itself.
            kept |= {name: good.pop(name, good[name.removeprefix(PREFIX)]) for name in averages}
            self.engine.put(good)
            raise Stop(f"the KL is {kl:.4g} nats per response, not within ppo.max_kl, {limit:g}", metrics)
        now = self.engine.role_tensors(POLICY) | {name: kept[name] for name in averages}
        kept |= {GOOD + name: tensor for name, tensor in now.items()}

    def update(self, step: int, samples: list[Sample]) -> dict[str, float]:
        """Epochs of minibatch updates of policy and critic; metrics are means over all of them.

        They end early once a minibatch's `policy/approxkl_avg` is above `max_approxkl`.
        """
        policy_weight = self._policy_weight(step)
        learning_rate = self.engine.learning_rate(POLICY)
        done: list[dict[str, float]] = []
        for minibatch in self._schedule(step, samples):
            done.append(self._update_on(minibatch, policy_weight))
            if done[-1]["policy/approxkl_avg"] > (self.ppo.max_approxkl or math.inf):
                break
            if not math.isfinite(done[-1]["grad_norm"]):
                break  # one reward that is not finite is in the advantages of all, once they are whitened
        means = {name: sum(figures[name] for figures in done) / len(done) for name in done[0]}
        # Before the first update, the policy is the one that was sampled from.
        means[DIFFERENCE] = done[0][DIFFERENCE]
        return means | {"learning_rate": learning_rate, "policy/updates": len(done)}

    def _policy_weight(self, step: int) -> float:
        """0 while the critic warms up alone, and the policy stands still; 1 from then on."""
        if step < self.ppo.critic_warmup:
            self.engine.begins[POLICY] = math.inf
            return 0.0
        if self.ppo.critic_warmup:
            memory = self.experience.memory
            self.engine.begins[POLICY] = memory.setdefault("policy_begins", self.engine.adam_steps)
        return 1.0

    def _schedule(self, step: int, samples: list[Sample]) -> Iterator[list[Sample]]:
        """The minibatches of all epochs; the first epoch keeps the order in which samples were scored."""
        for epoch in range(self.ppo.epochs):
            order = epoch_order(len(samples), seed_from(self.experience.seed, "minibatches", step), epoch)
            yield from self.experience.minibatches(samples if epoch == 0 else [samples[i] for i in order])

    def _update_on(self, minibatch: list[Sample], policy_weight: float) -> dict[str, float]:
        experience, ranks = self.experience, self.engine.ranks
        mine = ranks.share(minibatch)
        micros = experience.micro_batches(mine)
        tokens = sum(len(sample.response_ids) for sample in minibatch)

        def summed(backward: Callable[..., dict[str, float]], **options: float) -> dict[str, float]:
            sums: dict[str, float] = {}
            for micro in micros:
                figures = backward(micro, experience.response_batch(micro), tokens, **options)
                sums = {name: sums.get(name, 0.0) + figure for name, figure in figures.items()}
            return sums

        if experience.shared_head:
            sums = summed(self._shared_backward, weight=policy_weight)
        else:
            await_values = minibatch[0].awaits_values
            sums = summed(self._critic_backward)  # first: the policy's advantages may come of its values
            if await_values:
                experience.share_values(minibatch, mine)
            sums |= summed(self._policy_backward, weight=policy_weight)
        if self.ptx and policy_weight:
            sums["loss/ptx_avg"] = self.ptx.backward()
        self.engine.step()
        means = ranks.sum(sums)
        for name in PER_TOKEN & means.keys():
            means[name] /= tokens  # once, at the end: ratios of exactly 1 have a mean of exactly 1
        return means | {"grad_norm": self.engine.grad_norm}

    def _critic_backward(self, micro: list[Sample], batch: ResponseBatch, tokens: int) -> dict[str, float]:
        values = state_values(self.engine, CRITIC, batch)
        if micro[0].awaits_values:
            self.experience.take_values(micro, values)
        loss, figures = self._critic_loss(micro, batch, tokens, values)
        self.engine.backward(self.ppo.vf_coef * loss)
        return figures

    def _policy_backward(
        self, micro: list[Sample], batch: ResponseBatch, tokens: int, weight: float
    ) -> dict[str, float]:
        policy = response_statistics(self.engine, POLICY, batch, entropy=self._with_entropy)
        loss, figures = self._policy_loss(micro, batch, tokens, policy)
        self.engine.backward(weight * loss)
        return figures

    def _shared_backward(
        self, micro: list[Sample], batch: ResponseBatch, tokens: int, weight: float
    ) -> dict[str, float]:
        """One forward and backward for policy and critic; the trunk is left alone where the policy is."""
        policy = response_statistics(
            self.engine,
            POLICY,
            batch,
            entropy=self._with_entropy,
            values=CRITIC,
            detach_values=not weight,
        )
        loss, figures = self._policy_loss(micro, batch, tokens, policy)
        critic_loss, critic_figures = self._critic_loss(micro, batch, tokens, policy.values)
        self.engine.backward(weight * loss + self.ppo.vf_coef * critic_loss)
        return figures | critic_figures

    @property
    def _with_entropy(self) -> bool:
        return self.ppo.entropy_coef > 0

    def _policy_loss(
        self, micro: list[Sample], batch: ResponseBatch, tokens: int, policy: TokenStatistics
    ) -> tuple[Tensor, dict[str, float]]:
        ppo, logprobs = self.ppo, policy.logprobs
        old_logprobs, advantages = self._padded(micro, "logprobs"), self._padded(micro, "advantages")
        sampled = self._padded(micro, "sampled_logprobs")
        loss, sums = policy_loss(
            logprobs, old_logprobs, advantages, batch.mask, ppo.clip_range, tokens, ppo.dual_clip
        )
        figures = {
            "loss/policy_avg": loss.item(),
            "val/ratio": float(sums["ratio"]),
            "policy/clipfrac_avg": float(sums["clipfrac"]),
            "policy/approxkl_avg": float(sums["approxkl"]),
            DIFFERENCE: float(masked_sum((logprobs.detach() - sampled).abs(), batch.mask)),
        }
        if ppo.kl_in == "loss":
            kl = token_kl(logprobs, self._padded(micro, "ref_logprobs"), ppo.kl_estimator)
            kl_loss = masked_sum(kl, batch.mask) / tokens
            loss = loss + self.experience.kl_coef * kl_loss
            figures["loss/kl_avg"] = kl_loss.item()
        if self._with_entropy:
            loss = loss - ppo.entropy_coef * masked_sum(policy.entropy, batch.mask) / tokens
        return loss, figures

    def _critic_loss(
        self, micro: list[Sample], batch: ResponseBatch, tokens: int, values: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        old_values, returns = self._padded(micro, "values"), self._padded(micro, "returns")
        loss, sums = value_loss(
            values[:, :-1], old_values, returns, batch.mask, self.ppo.clip_range_value, tokens
        )
        return loss, {"loss/value_avg": loss.item(), "val/clipfrac_avg": float(sums["clipfrac"])}

    def _padded(self, micro: list[Sample], name: str) -> Tensor:
        return padded(micro, name).to(self.engine.ranks.device)
