"""Stage 3, PPO against the reward model (Schulman et al. 2017; Ouyang et al. 2022, equation 2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from trl.trainer.utils import disable_dropout_in_model

from configs.schema import Ppo
from data import tokenize
from data.sampler import epoch_order, global_batch, micro_batches
from stages.advantages import explained_variance, gae, token_rewards, whiten
from stages.context import Context, Outcome
from stages.engine import Engine, load_parameters, seed_from
from stages.judgement import final_judgement, held_out_figures
from stages.loop import Progress, find_resume, run_steps
from stages.losses import policy_loss, value_loss
from stages.metrics import Meter, peak_memory_bytes
from stages.prepare import prepare, read_examples, save_role
from stages.rollout import (
    Layout,
    Sampler,
    lay_out,
    logprobs_and_entropy,
    response_logprobs,
    sequence_scores,
    state_values,
)

POLICY, REFERENCE, REWARD, CRITIC = "policy", "reference", "reward", "critic"


def run(context: Context) -> Outcome:
    """Train the `policy` adapter against the reward model and write it to `folder/adapter`."""
    config, ppo = context.config, context.config.ppo

    # 1. One base, four roles.
    ranks, tokenizer, roles = prepare(context)
    roles.add_from(POLICY, context.inputs["sft"], trainable=True)
    roles.add_from(REFERENCE, context.inputs["sft"], trainable=False)
    roles.add_from(REWARD, context.inputs["rm"], trainable=False)
    roles.add_from(CRITIC, context.inputs["rm"], trainable=True)
    disable_dropout_in_model(roles)  # the ratio compares two forwards of one policy

    # 2. Prompts.
    train, held_out = read_examples(context, "prompts", tokenize.prompts, tokenizer)

    # 3. The engine, where the last checkpoint left it.
    rates = {POLICY: ppo.learning_rate, CRITIC: ppo.critic_learning_rate or ppo.learning_rate}
    progress = Progress(ppo.iterations)
    checkpoint = find_resume(context, ranks)
    if checkpoint:
        load_parameters(roles, checkpoint.tensors(), rates)
    updates = ppo.iterations * ppo.epochs * ppo.minibatches
    engine = Engine(roles, rates, ppo, updates, config.deepspeed, ranks)
    if checkpoint:
        progress.step, progress.memory = checkpoint.step, checkpoint.state["memory"]
        engine.load_state(checkpoint.tensors(), checkpoint.state["optimizer_steps"])
        context.tracker.rewind(progress.step)
    sampler = Sampler(roles, tokenizer, ranks, ppo.rollout)
    trainer = Trainer(engine, ppo, sampler, config.seed)

    # 4. Iterations: roll out, score, update.
    def take_step(step: int) -> dict[str, float]:
        picks = global_batch(len(train), ppo.batch_size, config.seed, step)
        metrics, samples = trainer.iterate(step, [train[i] for i in picks])
        if (step + 1) % ppo.logging_steps == 0:
            context.tracker.samples(samples[: config.tracking.sample_rows], step + 1)
        return metrics

    def evaluate(_: int) -> dict[str, float]:
        return held_out_figures(context, sampler, held_out)

    run_steps(context, ppo, engine, progress, trainer.meter, take_step, evaluate)

    # 5. The result, judged on held-out prompts beside the base and the SFT policy.
    save_role(context, engine, POLICY, tokenizer)
    return Outcome(
        {
            **final_judgement(context, sampler, held_out),
            "steps": progress.total,
            "tokens_per_second": trainer.meter.tokens_per_second,
            "peak_memory_bytes": peak_memory_bytes(),
        }
    )


@dataclass
class Sample:
    """A prompt, its response, and what the four roles say of it; tensors are (R,) on the CPU.

    `values` are the critic's before each token; `score` is the reward model's less penalties.
    `advantages` and `returns` follow once the whole batch is known.
    """

    index: int
    text: str
    prompt_ids: list[int]
    response_ids: list[int]
    logprobs: Tensor = torch.empty(0)
    ref_logprobs: Tensor = torch.empty(0)
    entropy: float = 0.0
    values: Tensor = torch.empty(0)
    score: float = 0.0
    advantages: Tensor = torch.empty(0)
    returns: Tensor = torch.empty(0)

    @property
    def kl(self) -> float:
        """Sum over the response of log pi - log pi_ref: an unbiased estimate of the KL, in nats."""
        return float((self.logprobs - self.ref_logprobs).sum())


class Trainer:
    """One PPO iteration on one rank; all ranks hold the whole batch of samples between the forwards."""

    def __init__(self, engine: Engine, ppo: Ppo, sampler: Sampler, seed: int) -> None:
        self.engine, self.ppo, self.sampler, self.seed = engine, ppo, sampler, seed
        self.tokenizer = sampler.tokenizer
        self.meter = Meter()

    def iterate(self, step: int, prompts: Sequence[tokenize.Prompt]) -> tuple[dict[str, float], list[dict]]:
        """Roll out `prompts` (the global batch), score the responses, and update on them.

        Returns:
            The iteration's metrics, and its samples for people to read.
        """
        mine = self.roll_out(step, prompts)
        self.score(mine)
        samples = sorted(self.engine.ranks.gather(mine), key=lambda sample: sample.index)
        metrics = self.estimate_advantages(samples)
        metrics |= self.update(step, samples)
        self.meter.add(sum(len(s.prompt_ids) + len(s.response_ids) for s in samples))
        return metrics, self._readable(samples)

    def roll_out(self, step: int, prompts: Sequence[tokenize.Prompt]) -> list[Sample]:
        """Sample a response to each of this rank's prompts; the noise is a function of seed, step, prompt."""
        samples = [Sample(i, prompt.text, prompt.prompt_ids, []) for i, prompt in enumerate(prompts)]
        mine = [
            sample
            for minibatch in self._minibatches(samples)
            for sample in self.engine.ranks.share(minibatch)
        ]
        seeds = [seed_from(self.seed, "rollout", step, s.index, s.prompt_ids) for s in mine]
        responses = self.sampler(POLICY, [s.prompt_ids for s in mine], seeds)
        return [dataclasses.replace(s, response_ids=ids) for s, ids in zip(mine, responses, strict=True)]

    def _minibatches(self, samples: list[Sample]) -> list[list[Sample]]:
        return micro_batches(samples, len(samples) // self.ppo.minibatches)

    @torch.no_grad()
    def score(self, mine: list[Sample]) -> None:
        """Let the four roles look at the responses.

        The micro-batches are those of the first epoch's updates, so that the same forward gives the old
        log-probabilities and the first new ones: the first ratio is exactly 1.
        """
        roles = self.engine.roles
        share = len(mine) // self.ppo.minibatches
        for minibatch in micro_batches(mine, share):
            for micro in micro_batches(minibatch, self.ppo.micro_batch_size):
                batch = self._lay_out(micro)
                logprobs, entropy = logprobs_and_entropy(roles, POLICY, batch)
                ref_logprobs = response_logprobs(roles, REFERENCE, batch)
                scores = sequence_scores(roles, REWARD, batch)
                values = state_values(roles, CRITIC, batch)
                for i, one in enumerate(micro):
                    length = len(one.response_ids)
                    one.logprobs = logprobs[i, :length].cpu()
                    one.ref_logprobs = ref_logprobs[i, :length].cpu()
                    one.entropy = float(entropy[i, :length].mean())
                    one.values = values[i, :length].cpu()
                    one.score = float(scores[i]) - self._penalty(one)

    def _penalty(self, sample: Sample) -> float:
        ended = sample.response_ids[-1] == self.tokenizer.eos_token_id
        return 0.0 if ended else self.ppo.missing_eos_penalty or 0.0

    def estimate_advantages(self, samples: list[Sample]) -> dict[str, float]:
        """Per-token rewards, GAE and whitening over the whole batch; fills advantages and returns."""

        def padded(tensors: list[Tensor]) -> Tensor:
            return pad_sequence(tensors, batch_first=True)

        logprobs, ref_logprobs = (
            padded([s.logprobs for s in samples]),
            padded([s.ref_logprobs for s in samples]),
        )
        values = padded([s.values for s in samples])
        mask = padded([torch.ones_like(s.logprobs, dtype=torch.bool) for s in samples])
        scores = torch.tensor([s.score for s in samples])
        rewards = token_rewards(scores, logprobs, ref_logprobs, mask, self.ppo.kl_coef)
        advantages, returns = gae(rewards, values, mask, self.ppo.gamma, self.ppo.lam)
        variance = explained_variance(values, returns, mask)
        advantages = whiten(advantages, mask)
        for one, row_advantages, row_returns in zip(samples, advantages, returns, strict=True):
            length = len(one.response_ids)
            one.advantages, one.returns = row_advantages[:length], row_returns[:length]
        kl = torch.tensor([s.kl for s in samples])
        non_score = -self.ppo.kl_coef * kl
        ended = [s.response_ids[-1] == self.tokenizer.eos_token_id for s in samples]
        return {
            "objective/kl": float(kl.mean()),
            "objective/entropy": sum(s.entropy for s in samples) / len(samples),
            "objective/scores": float(scores.mean()),
            "objective/non_score_reward": float(non_score.mean()),
            "objective/rlhf_reward": float((scores + non_score).mean()),
            "val/explained_variance": float(variance),
            "completions/mean_length": float(mask.sum(1).float().mean()),
            "completions/clipped_ratio": 1 - sum(ended) / len(ended),
        }

    def update(self, step: int, samples: list[Sample]) -> dict[str, float]:
        """Epochs of minibatch updates of policy and critic; metrics are means over all of them."""
        sums: dict[str, float] = {}
        updates = 0
        learning_rate = self.engine.learning_rates()[0]
        for epoch in range(self.ppo.epochs):
            # The first epoch keeps the order in which the samples were scored.
            order = epoch_order(len(samples), seed_from(self.seed, "minibatches", step), epoch)
            shuffled = samples if epoch == 0 else [samples[i] for i in order]
            for minibatch in self._minibatches(shuffled):
                figures = self._update_on(minibatch)
                sums = {name: sums.get(name, 0.0) + value for name, value in figures.items()}
                updates += 1
        means = {name: value / updates for name, value in sums.items()}
        return means | {"learning_rate": learning_rate}

    def _update_on(self, minibatch: list[Sample]) -> dict[str, float]:
        ppo, ranks = self.ppo, self.engine.ranks
        tokens = sum(len(sample.response_ids) for sample in minibatch)
        sums: dict[str, float] = {}
        for micro in micro_batches(ranks.share(minibatch), ppo.micro_batch_size):
            batch = self._lay_out(micro)

            def padded(name: str, micro: list[Sample] = micro) -> Tensor:
                rows = [getattr(sample, name) for sample in micro]
                return pad_sequence(rows, batch_first=True).to(ranks.device)

            logprobs = response_logprobs(self.engine, POLICY, batch)
            loss, policy = policy_loss(
                logprobs, padded("logprobs"), padded("advantages"), batch.mask, ppo.clip_range, tokens
            )
            self.engine.backward(loss)  # before the critic is activated
            values = state_values(self.engine, CRITIC, batch)[:, :-1]
            vf_loss, value = value_loss(
                values, padded("values"), padded("returns"), batch.mask, ppo.clip_range_value, tokens
            )
            self.engine.backward(ppo.vf_coef * vf_loss)
            figures = {
                "loss/policy_avg": loss.item(),
                "loss/value_avg": vf_loss.item(),
                "val/ratio": float(policy["ratio"]),
                "policy/clipfrac_avg": float(policy["clipfrac"]),
                "policy/approxkl_avg": float(policy["approxkl"]),
                "val/clipfrac_avg": float(value["clipfrac"]),
            }
            sums = {name: sums.get(name, 0.0) + figure for name, figure in figures.items()}
        self.engine.step()
        means = ranks.sum(sums)
        for name in ("val/ratio", "policy/clipfrac_avg", "policy/approxkl_avg", "val/clipfrac_avg"):
            means[name] /= tokens  # once, at the end: ratios of exactly 1 have a mean of exactly 1
        return means | {"grad_norm": self.engine.grad_norm}

    def _lay_out(self, samples: list[Sample]) -> Layout:
        return lay_out(
            [s.prompt_ids for s in samples],
            [s.response_ids for s in samples],
            self.tokenizer.pad_token_id,
            self.engine.ranks.device,
        )

    def _readable(self, samples: list[Sample]) -> list[dict]:
        texts = self.sampler.decode([s.response_ids for s in samples])
        return [
            {"prompt": s.text, "response": text, "score": s.score, "kl": s.kl}
            for s, text in zip(samples, texts, strict=True)
        ]
