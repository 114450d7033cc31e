"""Best-of-n: the other way to use a reward model (Stiennon et al. 2020; Nakano et al. 2021, section 3.4).

n answers of the SFT policy to each prompt, of which the reward model picks one. On training prompts the picks
become demonstrations, for rejection-sampling fine-tuning (OpenAI's FeedME): SFT takes them as its data. On
held-out prompts they show what score can be had at which KL without training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.batches import tokenize
from data.batches.sampler import micro_batches, seed_from
from data.examples import read_examples
from data.storage.files import read_json_lines, write_json_lines
from stages.context import Context, Outcome
from stages.feedback.labellers import labeller
from stages.feedback.reward_model import RewardModel
from stages.maths.statistics import expected_best, kl_of_best, mean_with_interval
from stages.models.roles import Role
from stages.sampling.sampler import Sampler
from stages.setup import prepare
from stages.training.throughput import Meter, peak_memory_bytes

OUTPUT = "demonstrations"
ANSWERS_AT_ONCE = 1024  # written together; what a kill can cost
REMEDY = "Start over with --fresh."
Row = dict[str, Any]


def run(context: Context) -> Outcome:
    """Sample, score, and write `folder/demonstrations/train.jsonl` and `folder/curve.jsonl`."""
    # 1. Two frozen roles.
    ranks, models = context.ranks, prepare(context)
    models.policy_base.add_from(Role.POLICY, context.inputs["sft"], trainable=False)
    models.reward_base.add_from(Role.REWARD, context.inputs["rm"], trainable=False)
    models.eval()
    _, rollout = context.config.rollouts["best"]
    sampler, meter = Sampler(models.policy_base, models.tokenizer, ranks, rollout), Meter()
    reward_model = RewardModel(models, ranks, context.config.data)

    # 2. Answers to the prompts of PPO, a part of them at a time; parts that are there already are kept.
    train, held_out = read_examples(
        context.config, "ppo", "prompts", tokenize.prompts, models.tokenizer, context.tracker.note
    )
    answers = {
        split: [
            row
            for part in parts(context, split, prompts)
            for row in collect(context, sampler, reward_model, meter, *part)
        ]
        for split, prompts in (("train", train), ("held_out", held_out))
    }

    # 3. The best of each, and what the best of fewer would have scored.
    demonstrations = [row for row in map(demonstration, answers["train"]) if row]
    metrics, curve = best_of(answers["held_out"], context.config.best.n)
    lost = len(train) - len(demonstrations)
    context.tracker.note(
        f"{len(demonstrations)} demonstrations; {lost} prompts had no answer with text that ended its turn"
    )
    if ranks.rank == 0:
        (context.folder / OUTPUT).mkdir(exist_ok=True)
        write_json_lines(context.folder / OUTPUT / "train.jsonl", demonstrations)
        write_json_lines(context.folder / "curve.jsonl", curve)
        context.tracker.samples(demonstrations[:: max(1, len(demonstrations) // 16)], 0)
    ranks.barrier()
    return Outcome(
        {
            **metrics,
            "demonstrations": len(demonstrations),
            "steps": len(train) + len(held_out),
            "tokens_per_second": meter.tokens_per_second,
            "peak_memory_bytes": ranks.max(peak_memory_bytes()),
        },
        models.policy_base.base_digest,
    )


def parts(
    context: Context, split: str, prompts: Sequence[tokenize.Prompt]
) -> Iterator[tuple[Path, Sequence[tokenize.Prompt]]]:
    """The file of each part, and its prompts."""
    n = context.config.best.n
    context.tracker.phase(
        f"best: {n} answers to each of the {split.replace('_', '-')} prompts", len(prompts) * n
    )
    for number, part in enumerate(micro_batches(list(prompts), max(1, ANSWERS_AT_ONCE // n))):
        yield context.folder / "answers" / f"{split}-{number:05d}.jsonl", part


def collect(
    context: Context,
    sampler: Sampler,
    reward_model: RewardModel,
    meter: Meter,
    file: Path,
    prompts: Sequence[tokenize.Prompt],
) -> list[Row]:
    """The prompts of one part with answers and scores, from `file` where an earlier attempt wrote it."""
    there = context.resume and file.exists()
    sampler.ranks.barrier()  # nobody writes before all have looked
    if there:
        context.tracker.advance(len(prompts) * context.config.best.n)
    else:
        rows = answer(context, sampler, reward_model, meter, prompts)
        if sampler.ranks.rank == 0:
            file.parent.mkdir(exist_ok=True)
            write_json_lines(file, rows)
        sampler.ranks.barrier()
    return read_json_lines(file, ["prompt", "completions", "ended", "scores"], remedy=REMEDY)


def answer(
    context: Context,
    sampler: Sampler,
    reward_model: RewardModel,
    meter: Meter,
    prompts: Sequence[tokenize.Prompt],
) -> list[Row]:
    """n answers to each prompt with the reward model's scores, and the judge's where there is one."""
    best, name = context.config.best, context.config.ppo.judge
    judge = labeller(name, "ppo.judge", sampler.ranks) if name else None
    asked = [prompt for prompt in prompts for _ in range(best.n)]
    ids = [prompt.prompt_ids for prompt in asked]
    seeds = [seed_from(context.seed, "best", i % best.n, p) for i, p in enumerate(ids)]
    responses = sampler.shared(Role.POLICY, ids, seeds, context.tracker.advance)
    scores = reward_model.shared(asked, responses, best.micro_batch_size)
    texts = sampler.decode([response.ids for response in responses])
    meter.add(sum(len(p) + len(response.ids) for p, response in zip(ids, responses, strict=True)))
    gold = judge([prompt.text for prompt in asked], texts) if judge else []
    end = sampler.tokenizer.eos_token_id
    rows = []
    for number, prompt in enumerate(prompts):
        mine = slice(number * best.n, (number + 1) * best.n)
        row: Row = {"prompt": prompt.prompt, "completions": texts[mine], "scores": scores[mine]}
        row["ended"] = [response.ids[-1] == end for response in responses[mine]]
        if gold:
            row["gold"] = gold[mine]
        rows.append(row)
    return rows


def demonstration(row: Row) -> Row | None:
    """The prompt with the best of its answers that SFT can learn from; None where there is none.

    That is one with text in it that ended its turn: SFT would teach an end to one that was cut.
    """
    answers = zip(row["scores"], row["completions"], row["ended"], strict=True)
    useful = [(score, text) for score, text, ended in answers if ended and text]
    if not useful:
        return None
    score, text = max(useful)
    chat = not isinstance(row["prompt"], str)
    completion = [{"role": "assistant", "content": text}] if chat else text
    return {"prompt": row["prompt"], "completion": completion, "score": score}


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
    found: dict[str, float] = {}
    for name, column in judges.items():
        found |= mean_with_interval(f"{name}{end}", [expected_best(r["scores"], r[column], k) for r in rows])
    return found
