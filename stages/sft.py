"""Stage 1, supervised fine-tuning on demonstrations (Ouyang et al. 2022, section 3.5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from data.batches import pack, tokenize
from data.batches.sampler import micro_batches, total_steps
from data.examples import read_examples
from stages.context import Context, Outcome
from stages.maths.losses import masked_sum, nll_loss
from stages.models.base_checks import check_packing
from stages.setup import prepare
from stages.training.engine import Engine
from stages.training.export import save_role
from stages.training.likelihood import ROLE, Example, forward, length, targets
from stages.training.loop import Progress, find_resume, go_back_to_best, run_steps, seed_step, start_engine
from stages.training.throughput import Meter, peak_memory_bytes


def run(context: Context) -> Outcome:
    """Train the `policy` adapter on demonstrations and write it to `folder/adapter`."""
    config, sft = context.config, context.config.sft

    # 1. The base with one fresh adapter.
    ranks, models = context.ranks, prepare(context)
    tokenizer = models.tokenizer
    seed_step(context.seed, "sft adapter", 0, 0)  # the same fresh adapter on every rank
    models.policy_base.add_new(ROLE, config.adapter)

    # 2. Demonstrations, packed or one to a row.
    train, held_out = read_examples(
        config, "sft", "demonstrations", tokenize.demonstrations, tokenizer, context.tracker.note
    )
    if sft.packing:
        check_packing(models.policy_base.causal)
    rows = pack.pack(train, config.data.max_length) if sft.packing else train

    # 3. The engine, where the last checkpoint left it.
    progress = Progress(total_steps(len(rows), sft.batch_size, sft.epochs, sft.max_steps))
    rates, checkpoint = {ROLE: sft.learning_rate}, find_resume(context, ranks)
    engine = start_engine(context, models, rates, sft, progress.total, ranks, progress, checkpoint)
    trainer = SftTrainer(engine, tokenizer.pad_token_id, sft.micro_batch_size)

    # 4. Training.
    def take_step(_: int, picks: list[int]) -> dict[str, float]:
        return trainer.step([rows[i] for i in picks])

    def evaluate() -> dict[str, float]:
        return trainer.evaluate(held_out)

    before, after = run_steps(context, sft, engine, progress, trainer.meter, len(rows), take_step, evaluate)

    # 5. The result.
    if sft.use_best:
        after = go_back_to_best(context, engine, progress)
    save_role(context, engine, ROLE, tokenizer)
    return Outcome(
        {
            **{f"eval_{name}_before": value for name, value in before.items()},
            **{f"eval_{name}": value for name, value in after.items()},
            "steps": progress.total,
            "tokens_per_second": trainer.meter.tokens_per_second,
            "peak_memory_bytes": ranks.max(peak_memory_bytes()),
        },
        models.base_digest,
    )


class SftTrainer:
    """One optimizer step, and evaluation, of a language-model role on demonstrations."""

    def __init__(self, engine: Engine, pad_id: int, micro_batch_size: int) -> None:
        self.engine, self.pad_id, self.micro_batch_size = engine, pad_id, micro_batch_size
        self.meter = Meter()

    def step(self, batch: Sequence[Example]) -> dict[str, float]:
        """Update on one global batch; loss and accuracy are means over its completion tokens."""
        ranks = self.engine.ranks
        tokens = sum(targets(example) for example in batch)
        sums = {"loss": 0.0, "mean_token_accuracy": 0.0}
        for micro in micro_batches(ranks.share(list(batch)), self.micro_batch_size):
            for name, part in self._backward(micro, tokens).items():
                sums[name] += part
        learning_rate = self.engine.learning_rate(ROLE)
        self.engine.step()
        self.meter.add(sum(map(length, batch)))
        return ranks.sum(sums) | {"learning_rate": learning_rate, "grad_norm": self.engine.grad_norm}

    def _backward(self, micro: Sequence[Example], tokens: int) -> dict[str, float]:
        """Accumulate gradients on one micro-batch; its part of the global batch's figures."""
        logprobs, correct, mask = forward(self.engine, micro, self.pad_id, self.engine.ranks.device)
        loss = nll_loss(logprobs, mask, tokens)
        self.engine.backward(loss)
        return {"loss": loss.item(), "mean_token_accuracy": masked_sum(correct, mask).item() / tokens}

    @torch.no_grad()
    def evaluate(self, held_out: Sequence[tokenize.Demonstration]) -> dict[str, float]:
        """`loss`: mean negative log-likelihood of held-out completion tokens, in nats; {} without any."""
        if not held_out:
            return {}
        roles, ranks = self.engine.roles, self.engine.ranks
        roles.eval()
        sums = {"nll": 0.0, "tokens": 0.0}
        for round_ in ranks.rounds(list(held_out), self.micro_batch_size):
            logprobs, _, mask = forward(roles, round_.items, self.pad_id, ranks.device)
            sums["nll"] -= masked_sum(logprobs, mask).item() * round_.weight
            sums["tokens"] += mask.sum().item() * round_.weight
        roles.train()
        sums = ranks.sum(sums)
        return {"loss": sums["nll"] / sums["tokens"]}
