"""The policy on held-out prompts: reward, KL, and a gold judge that PPO never sees."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from data import tokenize
from stages.context import Context
from stages.engine import seed_from
from stages.labellers import LABELLERS
from stages.metrics import mean_with_interval
from stages.modeling import BASE
from stages.rollout import Sampler, lay_out, response_logprobs, sequence_scores


@dataclass(frozen=True)
class Answers:
    """One role's answers to the held-out prompts: text, reward model's score, KL to the reference, length."""

    texts: list[str]
    scores: list[float]
    kl: list[float]
    lengths: list[int]

    def gold(self, judge: str) -> list[float]:
        return [LABELLERS[judge](text) for text in self.texts]


def answer(context: Context, sampler: Sampler, role: str, prompts: Sequence[tokenize.Prompt]) -> Answers:
    """Sample one answer of `role` to each prompt, with the same noise whenever and whoever is asked."""
    roles, ranks = sampler.roles, sampler.ranks
    ids = [prompt.prompt_ids for prompt in prompts]
    seeds = [seed_from(context.config.seed, "judgement", i, prompt) for i, prompt in enumerate(ids)]
    context.tracker.phase(f"ppo: answers of {role} to held-out prompts", len(ids))
    responses = sampler.shared(role, ids, seeds, context.tracker.advance)
    found: list[tuple[int, float, float]] = []
    for round_ in ranks.rounds(list(range(len(ids))), context.config.ppo.micro_batch_size):
        batch = lay_out(
            [ids[i] for i in round_.items],
            [responses[i] for i in round_.items],
            sampler.tokenizer.pad_token_id,
            ranks.device,
        )
        with torch.no_grad():
            scores = sequence_scores(roles, "reward", batch)
            logprobs = response_logprobs(roles, role, batch)
            ref_logprobs = response_logprobs(roles, "reference", batch)
        kl = torch.where(batch.mask, logprobs - ref_logprobs, 0.0).sum(1)
        found += list(zip(round_.items, scores.tolist(), kl.tolist(), strict=True)) * round_.weight
    found = sorted(ranks.gather(found))
    return Answers(
        sampler.decode(responses),
        [score for _, score, _ in found],
        [kl for _, _, kl in found],
        [len(response) for response in responses],
    )


def held_out_figures(
    context: Context, sampler: Sampler, prompts: Sequence[tokenize.Prompt]
) -> dict[str, float]:
    """`eval/score`, `eval/kl`, `eval/length` of the policy, and `eval/gold` where there is a judge."""
    if not prompts:
        return {}
    answers = answer(context, sampler, "policy", prompts)
    means: dict[str, Sequence[float]] = {
        "eval/score": answers.scores,
        "eval/kl": answers.kl,
        "eval/length": answers.lengths,
    }
    if judge := context.config.ppo.judge:
        means["eval/gold"] = answers.gold(judge)
    return {name: sum(values) / len(values) for name, values in means.items()}


def final_judgement(
    context: Context, sampler: Sampler, prompts: Sequence[tokenize.Prompt]
) -> dict[str, float]:
    """Base, SFT policy and PPO policy on the same held-out prompts, also written to `evaluation.jsonl`.

    Returns:
        Means with 95 % intervals over prompts; empty if nothing is held out. `win_rate` is the share of
        prompts where the judge prefers the PPO answer to the SFT answer, a tie counting one half;
        without a judge, only the reward model's own `rm_win_rate` is there.
    """
    if not prompts:
        return {}
    roles_by_name = {"base": BASE, "sft": "reference", "ppo": "policy"}
    answers = {name: answer(context, sampler, role, prompts) for name, role in roles_by_name.items()}
    sft, ppo = answers["sft"], answers["ppo"]
    columns: dict[str, Sequence] = {"prompt": [prompt.text for prompt in prompts]}
    columns |= {name: each.texts for name, each in answers.items()}
    columns |= {f"score_{name}": each.scores for name, each in answers.items()}
    columns["kl"] = ppo.kl
    metrics = {
        **mean_with_interval("rm_score_sft", sft.scores),
        **mean_with_interval("rm_score_ppo", ppo.scores),
        **mean_with_interval("rm_win_rate", wins(ppo.scores, sft.scores)),
        **mean_with_interval("kl", ppo.kl),
        **mean_with_interval("mean_length", ppo.lengths),
    }
    if judge := context.config.ppo.judge:
        gold = {name: each.gold(judge) for name, each in answers.items()}
        columns |= {f"gold_{name}": scores for name, scores in gold.items()}
        for name, scores in gold.items():
            metrics |= mean_with_interval(f"gold_{name}", scores)
        metrics |= mean_with_interval("win_rate", wins(gold["ppo"], gold["sft"]))
    if sampler.ranks.rank == 0:
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (context.folder / "evaluation.jsonl").write_text("".join(lines), encoding="utf-8")
    return metrics


def wins(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """1 where ours is the higher score, 0 where theirs is, 1/2 where they tie."""
    return [0.5 + 0.5 * ((a > b) - (a < b)) for a, b in zip(ours, theirs, strict=True)]
