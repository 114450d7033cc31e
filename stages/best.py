"""Best-of-n: the other way to use a reward model (Stiennon et al. 2020; Nakano et al. 2021, section 3.4).

The SFT policy gives n answers to each prompt, and the reward model picks the best. On training prompts the
picks become demonstrations: SFT trains on them (rejection-sampling fine-tuning, OpenAI's FeedME). On held-out
prompts the picks show the score that is possible without training, and its KL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.batches import tokenize
from data.batches.sampler import micro_batches
from data.examples import once_each, read_examples
from data.sources.mixture import repeated
from data.sources.text import is_blank
from data.storage.files import read_json_lines, write_json_lines
from stages.context import Context, Outcome
from stages.feedback.labellers import labeller
from stages.feedback.reward_model import RewardModel
from stages.maths.statistics import expected_best, kl_of_best, mean_with_interval
from stages.models.reward_members import add_members
from stages.models.role_models import RoleModels
from stages.models.roles import Role
from stages.sampling.answers import sample_answers
from stages.sampling.decoding import Response
from stages.sampling.sampler import Sampler, open_sampler
from stages.setup import prepare
from stages.training.same_rows import other_rows
from stages.training.throughput import Meter, cost

OUTPUT = "demonstrations"
ANSWERS_AT_ONCE = 1024  # written together; the most that a kill can lose
REMEDY = "Start over with --fresh."
Row = dict[str, Any]


def run(context: Context) -> Outcome:
    """Sample, score, and write `folder/demonstrations/train.jsonl` and `folder/curve.jsonl`."""
    # 1. Two frozen roles.
    models = load_models(context)

    # 2. The prompts of PPO.
    read = read_examples(context.data("ppo"), "prompts", tokenize.prompts, models.tokenizer, once=True)
    train, held_out = (once_each(part, context.tracker.note) for part in (read.train, read.held_out))

    # 3. n answers to each prompt, with scores. Parts that an earlier attempt wrote are kept.
    parts = answer_parts(context, {"train": train, "held_out": held_out})
    meter = collect_answers(context, models, parts)
    answers = {
        split: [row for part in of_split for row in read_part(part.file)] for split, of_split in parts.items()
    }

    # 4. The best answer to each training prompt becomes a demonstration, as often as its weight says.
    picked = [
        {**best, "source": one.source}
        for one, row in zip(train, answers["train"], strict=True)
        if (best := demonstration(row))
    ]
    weighed = repeated(context.config.data, "ppo", picked, context.config.seed)
    demonstrations = [{key: row[key] for key in row if key != "source"} for row in weighed]
    lost = len(train) - len(picked)
    context.tracker.note(
        f"{len(demonstrations)} demonstrations; {lost} prompts had no answer with text that ended its turn"
    )

    # 5. On held-out prompts: the score of the best of 1, 2, 4, ... n answers, and its KL.
    metrics, curve = best_of(answers["held_out"], context.config.best.n)

    # 6. The result.
    write_results(context, demonstrations, curve)
    return Outcome(
        {
            **metrics,
            **read.counts,
            "demonstrations": len(demonstrations),
            **cost(meter, context.ranks, len(train) + len(held_out)),
        },
        models.policy_base.base_digest,
    )


@dataclass(frozen=True)
class Part:
    """Some prompts of one split, answered together, and the file that their answers go to."""

    file: Path
    prompts: Sequence[tokenize.Prompt]


Parts = Mapping[str, Sequence[Part]]  # by split


def load_models(context: Context) -> RoleModels:
    """The SFT policy and the reward model, both frozen."""
    models = prepare(context)
    models.policy_base.add_from(Role.POLICY, context.inputs["sft"], trainable=False)
    add_members(models.reward_base, context.inputs["rm"])
    models.eval()
    return models


def answer_parts(context: Context, splits: Mapping[str, Sequence[tokenize.Prompt]]) -> Parts:
    """The prompts of each split in parts of about `ANSWERS_AT_ONCE` answers."""
    size, folder = max(1, ANSWERS_AT_ONCE // context.config.best.n), context.folder / "answers"
    return {
        split: [
            Part(folder / f"{split}-{number:05d}.jsonl", batch)
            for number, batch in enumerate(micro_batches(list(prompts), size))
        ]
        for split, prompts in splits.items()
    }


def collect_answers(context: Context, models: RoleModels, parts: Parts) -> Meter:
    """Answer all parts that have no file yet, and write their files. Every rank must call.

    Returns:
        The meter of the tokens in prompts and answers.

    Raises:
        UserError: a file of an earlier attempt is damaged, or answers other prompts.
    """
    every = [part for of_split in parts.values() for part in of_split]
    there = [part for part in every if context.resume and part.file.exists()]
    for part in there:
        check_part(context, part)  # before the stage samples
    written = {part.file for part in there}
    context.ranks.barrier()  # no rank writes before all ranks have looked
    meter = Meter()
    if len(written) < len(every):
        reward_model = RewardModel(models, context.ranks, context.config.data)
        _, rollout = context.config.rollouts["best"]
        with open_sampler(models.policy_base, models.tokenizer, context.ranks, rollout) as sampler:
            for split, of_split in parts.items():
                begin_phase(context, split, of_split, written)
                for part in of_split:
                    if part.file not in written:
                        rows = answer(context, sampler, reward_model, meter, part.prompts)
                        write_part(context, part.file, rows)
    context.ranks.barrier()  # no rank reads before all files are written
    return meter


def begin_phase(context: Context, split: str, parts: Sequence[Part], written: Set[Path]) -> None:
    """Begin the progress display of a split. Its `written` files are done."""
    n = context.config.best.n
    total = n * sum(len(part.prompts) for part in parts)
    done = n * sum(len(part.prompts) for part in parts if part.file in written)
    context.tracker.phase(f"best: {n} answers to each of the {split.replace('_', '-')} prompts", total, done)


def write_part(context: Context, file: Path, rows: Sequence[Row]) -> None:
    """Write the answers of one part on rank 0."""
    if context.ranks.rank == 0:
        file.parent.mkdir(exist_ok=True)
        write_json_lines(file, rows)


def read_part(file: Path) -> list[Row]:
    """The prompts of one part with answers and scores; raises UserError if the file is damaged."""
    return read_json_lines(file, ["prompt", "completions", "ended", "scores"], remedy=REMEDY)


def check_part(context: Context, part: Part) -> None:
    """Raise UserError if the file of a part is damaged, or answers other prompts than the part has."""
    if [row["prompt"] for row in read_part(part.file)] != [one.prompt for one in part.prompts]:
        raise other_rows(context)


def write_results(
    context: Context, demonstrations: Sequence[Row], curve: Sequence[Mapping[str, float]]
) -> None:
    """Write demonstrations and curve on rank 0, and show some demonstrations."""
    if context.ranks.rank == 0:
        (context.folder / OUTPUT).mkdir(exist_ok=True)
        write_json_lines(context.folder / OUTPUT / "train.jsonl", demonstrations)
        write_json_lines(context.folder / "curve.jsonl", curve)
        context.tracker.samples(demonstrations[:: max(1, len(demonstrations) // 16)], 0)
    context.ranks.barrier()


def answer(
    context: Context,
    sampler: Sampler,
    reward_model: RewardModel,
    meter: Meter,
    prompts: Sequence[tokenize.Prompt],
) -> list[Row]:
    """n answers to each prompt with the reward model's scores, and the judge's if there is one."""
    best, data, name = context.config.best, context.config.data, context.config.ppo.judge
    judge = labeller(name, "ppo.judge", sampler.ranks) if name else None
    noise = context.seed, "best"
    answers = sample_answers(data, sampler, Role.POLICY, prompts, best.n, noise, context.tracker.advance)
    asked = [one.prompt for one in answers for _ in one.ids]
    responses = [Response(ids) for one in answers for ids in one.ids]
    scores = iter(reward_model.score_on_all_ranks(asked, responses, best.micro_batch_size))
    meter.add(sum(len(p.prompt_ids) + len(r.ids) for p, r in zip(asked, responses, strict=True)))
    texts = [text for one in answers for text in one.texts]
    gold = iter(judge([prompt.text for prompt in asked], texts)) if judge else None
    end = sampler.tokenizer.eos_token_id
    rows = []
    for one in answers:
        row: Row = {"prompt": one.prompt.prompt, "completions": one.completions}
        row["scores"] = [next(scores) for _ in one.ids]
        row["ended"] = [ids[-1] == end for ids in one.ids]
        if gold is not None:
            row["gold"] = [next(gold).score for _ in one.ids]
        rows.append(row)
    return rows


def demonstration(row: Row) -> Row | None:
    """The prompt with its best useful answer; None if there is none.

    A useful answer has visible text and ended its turn. SFT would teach a wrong end with an answer that
    was cut.
    """
    answers = zip(row["scores"], row["completions"], row["ended"], strict=True)
    useful = [(score, text) for score, text, ended in answers if ended and not is_blank(text)]
    if not useful:
        return None
    score, text = max(useful)
    chat = not isinstance(row["prompt"], str)
    completion = [{"role": "assistant", "content": text}] if chat else text
    return {"prompt": row["prompt"], "completion": completion, "rm_score": score}


def best_of(rows: Sequence[Row], n: int) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Scores of the best of k = 1, 2, 4, ... n answers to held-out prompts, and their KL; empty without any.

    Returns:
        Metrics of the SFT policy (k = 1, `..._sft`) and of the best of n (`..._best`), and a row for each k.
    """
    if not rows:
        return {}, []
    sizes = sorted({*(2**power for power in range(n.bit_length())), n})
    curve = [{"n": k, "kl": kl_of_best(k), **_scores(rows, k)} for k in sizes]
    return {**_scores(rows, 1, "_sft"), **_scores(rows, n, "_best"), "kl": kl_of_best(n)}, curve


def _scores(rows: Sequence[Row], k: int, end: str = "") -> dict[str, float]:
    """Mean reward score and gold score of the best of k, with intervals over prompts."""
    judges = {"rm_score": "scores"} | ({"gold": "gold"} if "gold" in rows[0] else {})
    metrics: dict[str, float] = {}
    for name, column in judges.items():
        best_of_k = [expected_best(r["scores"], r[column], k) for r in rows]
        metrics |= mean_with_interval(f"{name}{end}", best_of_k)
    return metrics
