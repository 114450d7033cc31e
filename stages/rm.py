"""Stage 2, a reward model on rankings (Ouyang et al. 2022, section 3.5, equation 1).

If the config names a labeller, the stage first collects rankings: K answers of the SFT policy to each prompt,
ranked by the labeller (InstructGPT's step 2). People have ranked them before the stage starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.batches import tokenize
from data.batches.sampler import Lengths, total_steps
from data.examples import Examples, read_examples, tokenized
from stages.context import Context, Outcome
from stages.feedback.earlier_rankings import with_earlier
from stages.feedback.people import take_rankings
from stages.feedback.rankings import (
    collect_rankings,
    has_rankings,
    read_collected_rankings,
    read_label_metrics,
)
from stages.feedback.reward_ensemble import RewardEnsemble
from stages.feedback.reward_evaluation import nats_of_answers, scored_rankings, write_report
from stages.feedback.reward_loss import check_labels, ties_note
from stages.feedback.reward_model import RewardModel, classifier_ending
from stages.feedback.reward_scale import normalized, score_statistics
from stages.feedback.reward_training import RewardModelTrainer
from stages.maths.preferences import noise_of
from stages.models.base_checks import check_packing, supports_block_mask
from stages.models.reward_members import member_role
from stages.models.role_models import RoleModels
from stages.models.roles import Role
from stages.models.start_adapters import is_classifier
from stages.sampling.sampler import open_sampler
from stages.setup import add_fresh, add_given, prepare
from stages.training.engine import Engine
from stages.training.export import write_members
from stages.training.loop import TrainingLoop
from stages.training.resume import find_checkpoint, seed_step, start_engine
from stages.training.same_rows import ROWS, check_rows
from stages.training.soundness import check_result
from stages.training.throughput import cost


def run(context: Context) -> Outcome:
    """Train the `reward` adapter and its head on rankings and write them to `folder/adapter`."""
    config, rm = context.config, context.config.rm

    # 1. Two roles: the frozen SFT policy, and the reward model, which starts from it on a shared base.
    ranks, models = context.ranks, prepare(context)
    if rm.packing:
        check_packing(models.reward_base.causal, "rm.packing")
    models.policy_base.add_from(Role.POLICY, context.inputs["sft"], trainable=False)
    add_reward_model(context, models)
    reward_model = RewardModel(models, ranks, config.data)

    # 2. Rankings, collected or read. Records of an earlier attempt are truncated before new ones are written.
    checkpoint = find_checkpoint(context)
    tokenizer, members = models.reward_tokenizer, models.reward_members
    train, held_out, counts = read_rankings(context, models, reward_model, record_samples=checkpoint is None)
    seen = check_rows(context, checkpoint, train, held_out)
    read_as_classifier(context, models, train)
    check_labels(rm.loss, [(one.prompt, one.labels) for one in (*train, *held_out)])
    if (note := ties_note(rm.loss, train)) is not None:
        context.tracker.note(note)

    # 3. The engine and the loop, at the newest checkpoint if there is one.
    steps = total_steps(len(train), rm.batch_size, rm.epochs, rm.max_steps)
    engine = start_engine(context, models, dict.fromkeys(members, rm.learning_rate), rm, steps, checkpoint)
    engine.clip_roles_apart()
    trainer = make_trainer(context, engine, train)
    loop = TrainingLoop(context, rm, engine, trainer.meter, steps, {ROWS: seen})
    loop.resume(checkpoint)

    # 4. Training.
    def take_step(step: int, picks: list[int]) -> dict[str, float]:
        return trainer.step(step, train, picks)

    def evaluate() -> dict[str, float]:
        return trainer.evaluate(held_out)

    _, after = loop.run(len(train), take_step, evaluate, trainer.lengths)

    # 5. The result, each member on a scale where the SFT policy has mean 0 and deviation 1.
    if rm.use_best:
        after = loop.load_best()
    check_result("rm", engine, steps, after)
    models.eval()
    # A new sampler, because ZeRO-3 has sharded the base since.
    with open_sampler(models.policy_base, models.tokenizer, ranks, rm.rankings.rollout) as sampler:
        scales = score_statistics(context, sampler, reward_model, held_out or train)
    report = report_on(context, trainer, tokenizer.pad_token_id, (train, held_out))
    write_normalized(context, engine, scales)
    return Outcome(
        {
            **{name.replace("loss", "eval_loss"): value for name, value in after.items()},
            "score_mean": scales[0][0],
            "score_std": scales[0][1],
            **counts,
            **read_label_metrics(context.folder),
            **report,
            **trainer.padding_metrics(rm, context.seed, train),
            **cost(trainer.meter, ranks, steps),
        },
        models.reward_base.base_digest,
        tokenize.is_chat(train[0].prompt, config.data),
        models.reward_base.compute_dtype,
    )


def make_trainer(context: Context, engine: Engine, train: Sequence[tokenize.Ranking]) -> RewardEnsemble:
    """The trainer of all members, whose batches are grouped by length if the config says so."""
    rm, models = context.config.rm, engine.models
    share_prompts = supports_block_mask(models.reward_base.causal)
    pad_id, size = models.reward_tokenizer.pad_token_id, rm.micro_batch_size
    trainers = [
        RewardModelTrainer(engine, pad_id, size, share_prompts, rm.loss, role, rm.packing)
        for role in models.reward_members
    ]
    lengths = Lengths([*map(trainers[0].tokens, train)]) if rm.group_by_length else None
    return RewardEnsemble(trainers, rm.batch_size, context.seed, lengths)


def write_normalized(context: Context, engine: Engine, scales: Sequence[tuple[float, float]]) -> None:
    """Write all members, each on the scale of its mean and deviation. Every rank must call."""
    models = engine.models
    tensors = {
        role: normalized(engine.role_tensors(role), role, *scale)
        for role, scale in zip(models.reward_members, scales, strict=True)
    }
    if engine.ranks.rank == 0:
        write_members(context, models, tensors, models.reward_tokenizer)
    engine.ranks.barrier()


def report_on(
    context: Context,
    trainer: RewardEnsemble,
    pad_id: int,
    parts: tuple[Sequence[tokenize.Ranking], Sequence[tokenize.Ranking]],
) -> dict[str, float]:
    """Write the report on the reward model, and return its metrics; nothing without held-out rankings.

    Args:
        parts: the training and the held-out rankings.
    """
    train, held_out = parts
    if not held_out:
        return {}
    ranks, models = trainer.engine.ranks, trainer.engine.models
    rewards = trainer.scores_of(held_out)
    at_once = context.config.rm.micro_batch_size
    nats = nats_of_answers(models.reward_base, held_out, pad_id, ranks, at_once)
    metrics: dict[str, float] = {}
    if ranks.rank == 0:
        rankings = scored_rankings(train, held_out, rewards, nats, models.reward_tokenizer)
        labels = read_label_metrics(context.folder)
        noise = noise_of(context.config.rm.rankings.of_single_people, labels)
        metrics = write_report(context.folder, rankings, noise)
    return ranks.broadcast(metrics)


def add_reward_model(context: Context, models: RoleModels) -> None:
    """Add each member: that of `rm.from`, or else a head on the SFT adapter.

    If the reward model has its own base, the head is on a new adapter.
    """
    if "rm" in context.config.starts:
        add_given(context, models.reward_base, Role.REWARD)
    else:
        for number in range(1, context.config.rm.members + 1):
            add_new_member(context, models, number)
    for role in models.reward_members:
        models.reward_base.head(role).bias.requires_grad_(False)  # the normalisation of the result sets it


def add_new_member(context: Context, models: RoleModels, number: int) -> None:
    """Add a random head on the SFT adapter, or on a new one if the reward model has its own base."""
    roles, role = models.reward_base, member_role(number)
    seed_step(context.seed, "rm head" if number == 1 else f"rm head {number}", 0, 0)
    roles.add_head(role)
    roles.head(role).pooling = context.config.rm.pooling
    if models.shares_base:
        roles.add_from(role, context.inputs["sft"], trainable=True)
    else:
        add_fresh(context, roles, role)


def read_as_classifier(context: Context, models: RoleModels, rankings: Sequence[tokenize.Ranking]) -> None:
    """Read the classifier of `rm.from` at the token at which it was trained, and note which that is."""
    folder, tokenizer = context.config.starts.get("rm"), models.reward_tokenizer
    if folder is None or not is_classifier(Path(folder)):
        return
    chat = tokenize.is_chat(rankings[0].prompt, context.config.data)
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
    if earlier := config.rm.rankings.earlier:
        collected, held_out, joined = with_earlier(collected, held_out, earlier, models.tokenizer)
        note(joined)
    parts = reward_model.rankings(collected), reward_model.rankings(held_out)
    return tokenized(config.data, tokenize.rankings, tokenizer, parts, note)
