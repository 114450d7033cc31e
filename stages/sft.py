"""Stage 1, supervised fine-tuning on demonstrations (Ouyang et al. 2022, section 3.5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from data.batches import pack, tokenize
from data.batches.sampler import Lengths, micro_batches, total_steps
from data.examples import read_examples
from stages.context import Context, Outcome
from stages.maths.losses import masked_mean, nll_loss
from stages.maths.statistics import Mean, Means, add_means
from stages.models.base_checks import check_packing
from stages.models.roles import Role, Roles
from stages.setup import add_fresh, add_given, prepare
from stages.training.checkpoint import Stateful
from stages.training.engine import Engine
from stages.training.export import save_role
from stages.training.likelihood import Example, completion_logprobs, completion_tokens, sequence_length
from stages.training.loop import TrainingLoop
from stages.training.metrics import reduce_means
from stages.training.padding import Batching, forwards_of, padding, padding_metrics
from stages.training.rank_budget import RankBudget
from stages.training.resume import find_checkpoint, seed_step, start_engine
from stages.training.same_rows import ROWS, check_rows
from stages.training.soundness import check_result
from stages.training.throughput import Meter, cost


def run(context: Context) -> Outcome:
    """Train the `policy` adapter on demonstrations and write it to `folder/adapter`."""
    config, sft = context.config, context.config.sft

    # 1. The base with one adapter, a fresh one or that of `sft.from`.
    ranks, models = context.ranks, prepare(context)
    tokenizer = models.tokenizer
    add_policy(context, models.policy_base)

    # 2. Demonstrations, packed or one per row.
    train, held_out, counts = read_examples(
        context.data("sft"), "demonstrations", tokenize.demonstrations, tokenizer
    )
    if sft.packing:
        check_packing(models.policy_base.causal, "sft.packing")
    rows: Sequence[Example] = pack.pack(train, config.data.max_length) if sft.packing else train

    # 3. The engine and the loop, at the newest checkpoint if there is one.
    steps = total_steps(len(rows), sft.batch_size, sft.epochs, sft.max_steps)
    checkpoint = find_checkpoint(context)
    seen = check_rows(context, checkpoint, train, held_out)
    engine = start_engine(context, models, {Role.POLICY: sft.learning_rate}, sft, steps, checkpoint)
    budget = start_budget(engine, steps)
    trainer = SftTrainer(engine, tokenizer.pad_token_id, sft.micro_batch_size, budget)
    parts: dict[str, Stateful] = {ROWS: seen, **({"budget": budget} if budget else {})}
    loop = TrainingLoop(context, sft, engine, trainer.meter, steps, parts)
    loop.resume(checkpoint)

    # 4. Training; with max_steps: 0, only the evaluation.
    def take_step(_: int, picks: list[int]) -> dict[str, float]:
        return trainer.step([rows[i] for i in picks])

    def evaluate() -> dict[str, float]:
        return trainer.evaluate(held_out)

    lengths = Lengths([*map(sequence_length, rows)]) if sft.group_by_length else None
    before, after = loop.run(len(rows), take_step, evaluate, lengths)

    # 5. The result.
    if sft.use_best:
        after = loop.load_best()
    check_result("sft", engine, steps, after)
    save_role(context, engine, Role.POLICY, tokenizer)
    return Outcome(
        {
            **{f"eval_{name}_before": value for name, value in before.items() if name == "loss"},
            **{f"eval_{name}": value for name, value in after.items()},
            **counts,
            **padding_metrics(
                sft, context.seed, Batching(rows, trainer.padding, lengths), Batching(train, trainer.padding)
            ),
            **cost(trainer.meter, ranks, steps),
        },
        models.base_digest,
        train[0].chat,
        models.policy_base.compute_dtype,
    )


def add_policy(context: Context, base: Roles) -> None:
    """Add the adapter to train: the one in `sft.from`, or a fresh one, the same on every rank."""
    if "sft" in context.config.starts:
        add_given(context, base, Role.POLICY)
    else:
        seed_step(context.seed, "sft adapter", 0, 0)
        add_fresh(context, base, Role.POLICY)


def start_budget(engine: Engine, steps: int) -> RankBudget | None:
    """AdaLoRA's budget of ranks, given after each of `steps` updates; None for other methods."""
    budget: RankBudget | None = engine.models.policy_base.budget
    if budget is not None:
        budget.schedule(steps)
        budget.follow(engine.optimizer, lambda: engine.counters.applied + 1)
    return budget


class SftTrainer:
    """Optimizer steps and evaluation of the policy on demonstrations."""

    def __init__(
        self, engine: Engine, pad_id: int, micro_batch_size: int, budget: RankBudget | None = None
    ) -> None:
        self.engine, self.pad_id, self.micro_batch_size = engine, pad_id, micro_batch_size
        self.budget = budget
        self.meter = Meter()

    def step(self, batch: Sequence[Example]) -> dict[str, float]:
        """Update on one global batch, and return its metrics: means over its completion tokens."""
        tokens = sum(completion_tokens(example) for example in batch)
        micros = micro_batches(self.engine.ranks.share(list(batch)), self.micro_batch_size)
        means = add_means(self._backward(micro, tokens) for micro in micros)
        if self.budget:
            self.engine.backward(self.budget.penalty() / self.engine.ranks.world)
        learning_rate = self.engine.learning_rate(Role.POLICY)
        self.engine.step()
        self.meter.add(sum(map(sequence_length, batch)))
        rates = {"learning_rate": learning_rate, "grad_norm": self.engine.grad_norm}
        return reduce_means(means, self.engine.ranks) | rates | {"padding": self.padding(batch).value}

    def padding(self, batch: Sequence[Example]) -> Mean:
        """The share of padding in the forwards of one global batch."""
        forwards = forwards_of(batch, self.micro_batch_size, self.engine.ranks.world)
        return padding(forwards, lambda example: [(sequence_length(example), 0)])

    def _backward(self, micro: Sequence[Example], tokens: int) -> Means:
        """Accumulate gradients on one micro-batch of a batch with `tokens` completion tokens."""
        logprobs, correct, mask = completion_logprobs(
            self.engine, micro, self.pad_id, self.engine.ranks.device
        )
        self.engine.backward(nll_loss(logprobs, mask, tokens))
        return {"loss": masked_mean(-logprobs, mask), "mean_token_accuracy": masked_mean(correct, mask)}

    @torch.no_grad()
    def evaluate(self, held_out: Sequence[tokenize.Demonstration]) -> dict[str, float]:
        """`loss`: negative log-likelihood per held-out completion token, in nats; {} without any.

        `loss_n` is the number of held-out demonstrations. Of several sources, `loss/LABEL` is that of each.
        """
        if not held_out:
            return {}
        models, ranks = self.engine.models, self.engine.ranks

        def nll(some: Sequence[tokenize.Demonstration]) -> list[Mean]:
            logprobs, _, mask = completion_logprobs(models, some, self.pad_id, ranks.device)
            totals, counts = torch.where(mask, -logprobs, 0.0).sum(1), mask.sum(1)
            return [Mean(*one) for one in zip(totals.tolist(), counts.tolist(), strict=True)]

        models.eval()
        of_each = ranks.map_in_order(held_out, self.micro_batch_size, nll)
        models.train()
        parts = {"loss": of_each}
        labels = sorted({example.source for example in held_out})
        for label in labels if len(labels) > 1 else ():
            pairs = zip(held_out, of_each, strict=True)
            parts[f"loss/{label}"] = [mean for example, mean in pairs if example.source == label]
        found = {name: sum(means, Mean(0.0, 0)).value for name, means in parts.items()}
        return found | {f"{name}_n": len(means) for name, means in parts.items()}
