"""Stage 2, a reward model on rankings (Ouyang et al. 2022, section 3.5, equation 1).

If the config names a labeller, the stage first collects rankings: K answers of the SFT policy to each prompt,
ranked by the labeller (InstructGPT's step 2). People have ranked them before the stage starts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from configs.schema import RankingLoss
from data.batches import collate, tokenize
from data.batches.sampler import Lengths, micro_batches, seed_from, total_steps
from data.examples import Examples, read_examples, tokenized
from stages.context import Context, Outcome
from stages.feedback.people import take_rankings
from stages.feedback.rankings import (
    collect_rankings,
    has_rankings,
    read_collected_rankings,
    read_label_metrics,
)
from stages.feedback.reward_evaluation import nats_of_answers, scored_rankings, write_report
from stages.feedback.reward_loss import check_labels, labels_of, reward_loss, ties_note
from stages.feedback.reward_model import RewardModel, classifier_ending
from stages.maths.preferences import ceiling_of
from stages.maths.statistics import Mean, Means, add_means, mean_with_interval
from stages.models.base_checks import supports_block_mask
from stages.models.queries import ScalarQuery
from stages.models.role_models import RoleModels
from stages.models.roles import Role
from stages.models.start_adapters import is_classifier
from stages.sampling.response_batch import response_batch, sequence_scores
from stages.sampling.sampler import Sampler, open_sampler
from stages.setup import add_given, prepare
from stages.training.engine import Engine
from stages.training.export import write_role
from stages.training.loop import TrainingLoop
from stages.training.metrics import reduce_means
from stages.training.padding import Rows, padding, padding_metrics
from stages.training.resume import find_checkpoint, seed_step, start_engine
from stages.training.soundness import check_result
from stages.training.throughput import Meter, peak_memory_bytes

DEFAULT_LOSS = RankingLoss()


def run(context: Context) -> Outcome:
    """Train the `reward` adapter and its head on rankings and write them to `folder/adapter`."""
    config, rm = context.config, context.config.rm

    # 1. Two roles: the frozen SFT policy, and the reward model, which starts from it on a shared base.
    ranks, models = context.ranks, prepare(context)
    models.policy_base.add_from(Role.POLICY, context.inputs["sft"], trainable=False)
    add_reward_model(context, models)
    reward_model = RewardModel(models, ranks, config.data)

    # 2. Rankings, collected or read. Records of an earlier attempt are truncated before new ones are written.
    checkpoint = find_checkpoint(context)
    tokenizer = models.reward_tokenizer
    train, held_out, counts = read_rankings(context, models, reward_model, record_samples=checkpoint is None)
    read_as_classifier(context, models, train)
    check_labels(rm.loss, [*train, *held_out])
    if (note := ties_note(rm.loss, train)) is not None:
        context.tracker.note(note)

    # 3. The engine and the loop, at the newest checkpoint if there is one.
    steps = total_steps(len(train), rm.batch_size, rm.epochs, rm.max_steps)
    engine = start_engine(context, models, {Role.REWARD: rm.learning_rate}, rm, steps, checkpoint)
    share_prompts = supports_block_mask(models.reward_base.causal)
    trainer = RewardModelTrainer(engine, tokenizer.pad_token_id, rm.micro_batch_size, share_prompts, rm.loss)
    loop = TrainingLoop(context, rm, engine, trainer.meter, steps)
    loop.resume(checkpoint)

    # 4. Training.
    def take_step(_: int, picks: list[int]) -> dict[str, float]:
        return trainer.step([train[i] for i in picks])

    def evaluate() -> dict[str, float]:
        return trainer.evaluate(held_out)

    lengths = Lengths([*map(trainer.tokens, train)]) if rm.group_by_length else None
    _, after = loop.run(len(train), take_step, evaluate, lengths)

    # 5. The result, on a scale where the SFT policy has mean 0 and deviation 1.
    if rm.use_best:
        after = loop.load_best()
    check_result("rm", engine, steps, after)
    models.eval()
    report = report_on(context, trainer, train, held_out)
    # A new sampler, because ZeRO-3 has sharded the base since.
    with open_sampler(models.policy_base, models.tokenizer, ranks, rm.rankings.rollout) as sampler:
        mean, deviation = score_statistics(context, sampler, reward_model, held_out or train)
    tensors = normalized(engine.role_tensors(Role.REWARD), mean, deviation)
    if ranks.rank == 0:
        write_role(context, models, Role.REWARD, tokenizer, tensors)
    ranks.barrier()
    return Outcome(
        {
            **{name.replace("loss", "eval_loss"): value for name, value in after.items()},
            "score_mean": mean,
            "score_std": deviation,
            **counts,
            **read_label_metrics(context.folder),
            **report,
            **padding_metrics(rm, context.seed, train, train, lengths, trainer.padding),
            "steps": steps,
            "tokens_per_second": trainer.meter.tokens_per_second,
            "peak_memory_bytes": ranks.max(peak_memory_bytes()),
        },
        models.reward_base.base_digest,
    )


def report_on(
    context: Context,
    trainer: RewardModelTrainer,
    train: Sequence[tokenize.Ranking],
    held_out: Sequence[tokenize.Ranking],
) -> dict[str, float]:
    """Write the report on the reward model, and return its metrics; nothing without held-out rankings."""
    if not held_out:
        return {}
    ranks, models, pad_id = trainer.engine.ranks, trainer.engine.models, trainer.pad_id
    rewards = trainer.scores_of(held_out)
    nats = nats_of_answers(models.reward_base, held_out, pad_id, ranks, trainer.micro_batch_size)
    metrics: dict[str, float] = {}
    if ranks.rank == 0:
        rankings = scored_rankings(train, held_out, rewards, nats, models.reward_tokenizer)
        labels = read_label_metrics(context.folder)
        ceiling = ceiling_of(context.config.rm.rankings.labeller, labels)
        metrics = write_report(context.folder, rankings, ceiling)
    return ranks.broadcast(metrics)


def add_reward_model(context: Context, models: RoleModels) -> None:
    """Add the reward model of `rm.from`, or else a head on the SFT adapter.

    If the reward model has its own base, the head is on a new adapter.
    """
    roles = models.reward_base
    if "rm" in context.config.starts:
        add_given(context, roles, Role.REWARD)
    else:
        add_new_reward_model(context, models)
    roles.heads[Role.REWARD].bias.requires_grad_(False)  # the normalisation of the result sets it


def add_new_reward_model(context: Context, models: RoleModels) -> None:
    """Add a random head on the SFT adapter, or on a new one if the reward model has its own base."""
    roles = models.reward_base
    seed_step(context.seed, "rm head", 0, 0)
    roles.add_head(Role.REWARD)
    if models.shares_base:
        roles.add_from(Role.REWARD, context.inputs["sft"], trainable=True)
    else:
        roles.add_new(Role.REWARD, context.config.adapter)


def read_as_classifier(context: Context, models: RoleModels, rankings: Sequence[tokenize.Ranking]) -> None:
    """Read the classifier of `rm.from` at the token at which it was trained, and note which that is."""
    folder, tokenizer = context.config.starts.get("rm"), models.reward_tokenizer
    if folder is None or not is_classifier(Path(folder)):
        return
    chat = context.config.data.chat or not isinstance(rankings[0].prompt, str)
    ending = classifier_ending(tokenizer, chat=chat)
    models.reward_base.head(Role.REWARD).ending = ending
    if ending is not None:
        after, before = repr(tokenizer.decode(ending.read)), repr(tokenizer.eos_token)
        words = f"after {after}" if ending.read else f"before {before}"
        context.tracker.note(f"rm.from: the score of an answer is read {words}, as the classifier does")


def read_rankings(
    context: Context, models: RoleModels, reward_model: RewardModel, record_samples: bool
) -> Examples[tokenize.Ranking]:
    """Training and held-out rankings, from `data.rm`, from people, or from the labeller, who ranks samples.

    Args:
        record_samples: record some collected rankings. A checkpoint has them on record already.
    """
    config, tokenizer, note = context.config, models.reward_tokenizer, context.tracker.note
    if config.rm.rankings.labeller == "file":
        return read_examples(context.data("rm"), "rankings", tokenize.rankings, tokenizer)
    if config.rm.rankings.labeller == "people":
        if not has_rankings(context):
            take_rankings(context)
    elif not has_rankings(context):
        rollout = config.rm.rankings.rollout
        with open_sampler(models.policy_base, models.tokenizer, context.ranks, rollout) as sampler:
            collect_rankings(context, sampler, Role.POLICY)
    collected, held_out = read_collected_rankings(context, record_samples)
    parts = reward_model.rankings(collected), reward_model.rankings(held_out)
    return tokenized(config.data, tokenize.rankings, tokenizer, parts, note)


class RewardModelTrainer:
    """Optimizer steps and evaluation of the reward role on ranked completions.

    With `share_prompts`, a prompt is forwarded once for all of its completions; the base must support block
    masks for that. Otherwise it is forwarded once per completion.
    """

    def __init__(
        self,
        engine: Engine,
        pad_id: int,
        micro_batch_size: int,
        share_prompts: bool,
        loss: RankingLoss = DEFAULT_LOSS,
    ) -> None:
        self.engine, self.pad_id, self.micro_batch_size = engine, pad_id, micro_batch_size
        self.share_prompts, self.loss = share_prompts, loss
        self.meter = Meter()

    def step(self, batch: Sequence[tokenize.Ranking]) -> dict[str, float]:
        """Update on one global batch, and return its metrics: means over prompts."""
        share = self.engine.ranks.share(list(batch))
        micros = micro_batches(share, self._prompts_at_once(batch))
        means = add_means(self._backward(micro, len(batch)) for micro in micros)
        learning_rate = self.engine.learning_rate(Role.REWARD)
        self.engine.step()
        self.meter.add(sum(map(self.tokens, batch)))
        rates = {"learning_rate": learning_rate, "grad_norm": self.engine.grad_norm}
        return reduce_means(means, self.engine.ranks) | rates | {"padding": self.padding(batch).value}

    def padding(self, batch: Sequence[tokenize.Ranking]) -> Mean:
        """The share of padding in the forwards of one global batch."""
        return padding(batch, self._prompts_at_once(batch), self.engine.ranks.world, self._rows)

    def _rows(self, ranking: tokenize.Ranking) -> Rows:
        """Tokens of the prompt and of the completion in each row that the ranking takes."""
        if self.share_prompts:
            return [(self.tokens(ranking), 0)]
        return [(len(ranking.prompt_ids), len(ids)) for ids in ranking.completion_ids]

    def _backward(self, micro: Sequence[tokenize.Ranking], rankings: int) -> Means:
        """Accumulate gradients on one micro-batch of a batch of `rankings`."""
        scores, order = self._scores(self.engine, micro)
        labels = labels_of(micro, self.engine.ranks.device)
        loss, means = reward_loss(self.loss, scores, order, labels, rankings)
        self.engine.backward(loss)
        return means

    @torch.no_grad()
    def evaluate(self, held_out: Sequence[tokenize.Ranking]) -> dict[str, float]:
        """Pairwise accuracy, margin and loss on held-out rankings: means over prompts, with intervals."""
        if not held_out:
            return {}
        size = self._prompts_at_once(held_out)
        self.engine.models.eval()
        rows = self.engine.ranks.map_in_order(held_out, size, self._metrics_of_each)
        self.engine.models.train()
        return {
            **mean_with_interval("accuracy", [row["accuracy"] for row in rows]),
            **mean_with_interval("margin", [row["margin"] for row in rows]),
            **mean_with_interval("loss", [row["loss"] for row in rows]),
        }

    @torch.no_grad()
    def scores_of(self, rankings: Sequence[tokenize.Ranking]) -> list[list[float]]:
        """The score of each completion of each ranking, as it is: before normalisation."""

        def score(some: Sequence[tokenize.Ranking]) -> list[list[float]]:
            scores, order = self._scores(self.engine.models, some)
            return [row[places >= 0].tolist() for row, places in zip(scores, order, strict=True)]

        return self.engine.ranks.map_in_order(rankings, self._prompts_at_once(rankings), score)

    def _metrics_of_each(self, rankings: Sequence[tokenize.Ranking]) -> list[dict[str, float]]:
        """Accuracy, margin and loss per ranking, all scored in one batch."""
        scores, order = self._scores(self.engine.models, rankings)
        labels = labels_of(rankings, self.engine.ranks.device)
        rows = []
        for i in range(len(rankings)):
            one = slice(i, i + 1)
            own = None if labels is None else labels[one]
            rows.append(reward_loss(self.loss, scores[one], order[one], own, 1)[1])
        return [{name: mean.value for name, mean in means.items()} for means in rows]

    def _prompts_at_once(self, batch: Sequence[tokenize.Ranking]) -> int:
        return max(1, self.micro_batch_size // max(len(ranking.completion_ids) for ranking in batch))

    def _scores(
        self, model: Engine | RoleModels, rankings: Sequence[tokenize.Ranking]
    ) -> tuple[Tensor, Tensor]:
        """Scores and ranks of each prompt's completions, (G, K); rank -1 marks an empty slot."""
        device, read = self.engine.ranks.device, self.engine.models.reward_base.head(Role.REWARD).read
        ranks = [torch.tensor(ranking.ranks, device=device) for ranking in rankings]
        order = pad_sequence(ranks, batch_first=True, padding_value=-1)
        if self.share_prompts:
            rows = [(ranking.prompt_ids, [*map(read, ranking.completion_ids)]) for ranking in rankings]
            batch = collate.rankings(rows, self.pad_id).to(device)
            query = ScalarQuery(Role.REWARD, batch.input_ids, batch.attention_mask, batch.position_ids)
            return model(query).gather(1, batch.last), order
        prompts = [ranking.prompt_ids for ranking in rankings for _ in ranking.completion_ids]
        completions = [read(ids) for ranking in rankings for ids in ranking.completion_ids]
        flat = sequence_scores(model, Role.REWARD, response_batch(prompts, completions, self.pad_id, device))
        scores = flat.split([len(ranking.completion_ids) for ranking in rankings])
        return pad_sequence(list(scores), batch_first=True), order

    def tokens(self, ranking: tokenize.Ranking) -> int:
        """Number of tokens to forward."""
        times = 1 if self.share_prompts else len(ranking.completion_ids)
        return times * len(ranking.prompt_ids) + sum(map(len, ranking.completion_ids))


def score_statistics(
    context: Context,
    sampler: Sampler,
    reward_model: RewardModel,
    rankings: Sequence[tokenize.Ranking],
) -> tuple[float, float]:
    """Mean and standard deviation of the raw score over new samples of the SFT policy."""
    config, count = context.config, context.config.rm.normalization_prompts
    rows = [{"prompt": ranking.prompt} for ranking in rankings[:count]]
    distinct, _ = tokenize.prompts(rows, sampler.tokenizer, config.data)
    prompts = [distinct[i % len(distinct)] for i in range(count)]
    ids = [prompt.prompt_ids for prompt in prompts]
    seeds = [seed_from(context.seed, "normalization", i, prompt) for i, prompt in enumerate(ids)]
    context.tracker.phase("rm: normalizing", count)
    responses = sampler.respond_on_all_ranks(Role.POLICY, ids, seeds, context.tracker.advance)
    scores = reward_model.score_on_all_ranks(prompts, responses, config.rm.micro_batch_size)
    values = torch.tensor(scores, dtype=torch.float64)
    return float(values.mean()), float(values.std(unbiased=False))


def normalized(tensors: dict[str, Tensor], mean: float, deviation: float) -> dict[str, Tensor]:
    """The role's tensors with a head that computes (score - mean) / deviation."""
    scale = 1.0 if math.isclose(deviation, 0.0, abs_tol=1e-12) else deviation
    scaled = dict(tensors)
    scaled[f"heads.{Role.REWARD}.weight"] = tensors[f"heads.{Role.REWARD}.weight"] / scale
    scaled[f"heads.{Role.REWARD}.bias"] = (tensors[f"heads.{Role.REWARD}.bias"] - mean) / scale
    return scaled
