"""The scale of a reward model's result: the SFT policy's answers have mean 0 and deviation 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from data.batches import tokenize
from data.batches.sampler import seed_from
from data.sources.mixture import first_of_each
from data.sources.split import first_of_each_prompt
from stages.context import Context
from stages.feedback.reward_model import RewardModel
from stages.models.roles import Role
from stages.sampling.sampler import Sampler


def score_statistics(
    context: Context,
    sampler: Sampler,
    reward_model: RewardModel,
    rankings: Sequence[tokenize.Ranking],
) -> list[tuple[float, float]]:
    """Mean and standard deviation of each member's raw score over new samples of the SFT policy."""
    config, count = context.config, context.config.rm.normalization_prompts
    rows = [{"prompt": ranking.prompt} for ranking in asked(rankings, count)]
    distinct, _ = tokenize.prompts(rows, sampler.tokenizer, config.data)
    prompts = [distinct[i % len(distinct)] for i in range(count)]
    ids = [prompt.prompt_ids for prompt in prompts]
    seeds = [seed_from(context.seed, "normalization", i, prompt) for i, prompt in enumerate(ids)]
    context.tracker.phase("rm: normalizing", count)
    responses = sampler.respond_on_all_ranks(Role.POLICY, ids, seeds, context.tracker.advance)
    scores = reward_model.members_on_all_ranks(prompts, responses, config.rm.micro_batch_size)
    columns = torch.tensor(scores, dtype=torch.float64).T
    return [(float(values.mean()), float(values.std(unbiased=False))) for values in columns]


def asked(rankings: Sequence[tokenize.Ranking], number: int) -> list[tokenize.Ranking]:
    """The first ranking of at most `number` prompts, by source in turn: the scale is of all sources."""
    distinct = first_of_each_prompt(rankings, lambda ranking: ranking.prompt)
    return first_of_each(distinct, number, lambda ranking: ranking.source)


def normalized(tensors: dict[str, Tensor], role: str, mean: float, deviation: float) -> dict[str, Tensor]:
    """The role's tensors with a head that computes (score - mean) / deviation."""
    scale = 1.0 if math.isclose(deviation, 0.0, abs_tol=1e-12) else deviation
    scaled = dict(tensors)
    scaled[f"heads.{role}.weight"] = tensors[f"heads.{role}.weight"] / scale
    scaled[f"heads.{role}.bias"] = (tensors[f"heads.{role}.bias"] - mean) / scale
    return scaled
