"""Sample the answers of every candidate to the same prompts with the same noise, and measure them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from apps.evaluate.candidates import Candidate
from apps.evaluate.in_context import first_part, in_context
from apps.evaluate.prompts import Row
from apps.evaluate.reasoning import final_answer, vote
from apps.trained_run import LoadedPolicies, reward_scores, this_process
from configs.schema import Data, Experiment
from data.batches import tokenize
from data.batches.sampler import micro_batches, seed_from
from data.batches.tokenize import Prompt
from stages.feedback.reward_model import RewardModel
from stages.sampling.decoding import Response
from stages.sampling.response_batch import response_kl
from stages.sampling.sampler import Sampler

AT_ONCE = 16  # responses in a forward


@dataclass(frozen=True)
class Answers:
    """One candidate's answers, one for each prompt.

    Attributes:
        rewards: the reward model's scores; empty without one.
        kl: to the SFT policy in nats; empty without an SFT policy, for demonstrations in the prompt and for a
            vote, whose KL is not defined, and for best of n, which has a formula of its own.
        lengths: tokens of each answer.
        ended: whether it ended its turn.
        cost: tokens read and sampled for each answer, all n of best-of-n or of a vote together.
        agreement: of a vote, the share of the answers that agree with the one that counts; else empty.
    """

    candidate: Candidate
    texts: list[str]
    rewards: list[float]
    kl: list[float]
    lengths: list[int]
    ended: list[bool]
    cost: list[int]
    agreement: list[float] = field(default_factory=list)


def answer(
    config: Experiment,
    policies: LoadedPolicies,
    sampler: Sampler,
    candidate: Candidate,
    prompts: Sequence[Prompt],
    demonstrations: Sequence[Row],
) -> Answers:
    """The answers of one candidate. The noise of an answer depends on its prompt and number only.

    Args:
        demonstrations: of which the candidate may have some in its prompt.

    Raises:
        UserError: demonstrations are missing, or the prompt does not fit; see `in_context`.
    """
    role, room = policies.roles[candidate.policy], policies.base.causal.config.get_text_config()
    window = room.to_dict().get("max_position_embeddings") or sys.maxsize  # a recurrent base has none
    context = window - sampler.rollout.max_new_tokens
    read = in_context(
        candidate, prompts, demonstrations, policies.tokenizer, config.data, context, config.seed
    )
    pairs = [(i, number) for i in range(len(prompts)) for number in range(candidate.samples)]
    ids = [read[i].prompt_ids for i, _ in pairs]
    seeds = [seed_from(config.seed, "evaluate", number, prompts[i].prompt_ids) for i, number in pairs]
    responses = sampler.respond(role, ids, seeds)
    texts = sampler.decode([response.ids for response in responses])
    if candidate.reasons:
        texts = [final_answer(text) for text in texts]
    elif candidate.in_context and isinstance(prompts[0].prompt, str) and not config.data.chat:
        texts = [first_part(text) for text in texts]
    asked = [prompts[i] for i, _ in pairs]
    rewards = _rewards(config.data, policies, candidate, asked, responses, texts) if policies.reward else []
    picks, agreement = _picks(candidate, len(prompts), rewards, texts)
    chosen = [responses[pick] for pick in picks]
    spent = [len(prompt) + len(response.ids) for prompt, response in zip(ids, responses, strict=True)]
    costs = [sum(spent[i * candidate.samples : (i + 1) * candidate.samples]) for i in range(len(prompts))]
    return Answers(
        candidate,
        [texts[pick] for pick in picks],
        [rewards[pick] for pick in picks] if rewards else [],
        _kl(policies, sampler, candidate, read, chosen),
        [len(response.ids) for response in chosen],
        [response.ids[-1] == sampler.tokenizer.eos_token_id for response in chosen],
        costs,
        agreement,
    )


def _rewards(
    data: Data,
    policies: LoadedPolicies,
    candidate: Candidate,
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    texts: Sequence[str],
) -> list[float]:
    """The reward model's score of each answer: of its tokens, or of its text if the prompt held more."""
    if candidate.in_context:
        pairs = zip(prompts, texts, strict=True)
        answered = [(one.prompt, tokenize.continuation(one.prompt, text, data)) for one, text in pairs]
        return reward_scores(policies, answered, data)
    reward_model = RewardModel(policies.models, this_process(), data)
    return reward_model.score_on_all_ranks(prompts, responses, AT_ONCE)


def _picks(
    candidate: Candidate, prompts: int, rewards: Sequence[float], texts: Sequence[str]
) -> tuple[list[int], list[float]]:
    """The row of the answer that counts, for each prompt: what a vote or the reward model chooses.

    Of a vote, also the share that agrees with it.
    """
    n = candidate.samples
    if candidate.votes > 1:
        votes = [vote(texts[i * n : (i + 1) * n]) for i in range(prompts)]
        return [i * n + place for i, (place, _) in enumerate(votes)], [share for _, share in votes]
    if n == 1:
        return list(range(prompts)), []
    return [max(range(i * n, (i + 1) * n), key=lambda row: rewards[row]) for i in range(prompts)], []


@torch.no_grad()
def _kl(
    policies: LoadedPolicies,
    sampler: Sampler,
    candidate: Candidate,
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
) -> list[float]:
    """The KL of what was sampled to the SFT policy as it is, of each response."""
    if candidate.samples > 1 or candidate.in_context or "sft" not in policies.roles:
        return []
    values: list[float] = []
    for some in micro_batches(list(zip(prompts, responses, strict=True)), AT_ONCE):
        batch = sampler.response_batch([prompt.prompt_ids for prompt, _ in some], [r for _, r in some])
        role, reference = policies.roles[candidate.policy], policies.roles["sft"]
        values += response_kl(policies.models, role, reference, batch).tolist()
    return values
