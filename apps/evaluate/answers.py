"""Sample the answers of every candidate to the same prompts with the same noise, and measure them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from apps.evaluate.candidates import Candidate
from apps.evaluate.in_context import first_part
from apps.evaluate.reasoning import final_answer, vote
from apps.trained_run import LoadedPolicies, reward_scores, this_process
from configs.schema import Data, Experiment
from data.batches import tokenize
from data.batches.sampler import micro_batches, seed_from
from data.batches.tokenize import Prompt, is_chat
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
        lengths: tokens of each answer, without what stands before or after it in the response.
        ended: whether it ended: its turn, or where the next demonstration begins.
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


class Kept(NamedTuple):
    """What counts of a response: its text, the tokens of that, and whether it ended."""

    text: str
    tokens: int
    ended: bool


def answer(
    config: Experiment,
    policies: LoadedPolicies,
    sampler: Sampler,
    candidate: Candidate,
    prompts: Sequence[Prompt],
    read: Sequence[Prompt],
) -> Answers:
    """The answers of one candidate. The noise of an answer depends on its prompt and number only.

    Args:
        read: the prompts as the candidate reads them; see `in_context`.
    """
    pairs = [(i, number) for i in range(len(prompts)) for number in range(candidate.samples)]
    ids = [read[i].prompt_ids for i, _ in pairs]
    seeds = [seed_from(config.seed, "evaluate", number, prompts[i].prompt_ids) for i, number in pairs]
    responses = sampler.respond(policies.roles[candidate.policy], ids, seeds)
    asked, chat = [prompts[i] for i, _ in pairs], is_chat(prompts[0].prompt, config.data)
    texts = sampler.decode([response.ids for response in responses])
    kept = [
        _kept(candidate, response.ids, text, sampler.tokenizer, chat)
        for response, text in zip(responses, texts, strict=True)
    ]
    rewards = _rewards(config.data, policies, candidate, asked, responses, kept) if policies.reward else []
    picks, agreement = _picks(candidate, len(prompts), rewards, [one.text for one in kept])
    spent = [len(prompt) + len(response.ids) for prompt, response in zip(ids, responses, strict=True)]
    costs = [sum(spent[i * candidate.samples : (i + 1) * candidate.samples]) for i in range(len(prompts))]
    return Answers(
        candidate,
        [kept[pick].text for pick in picks],
        [rewards[pick] for pick in picks] if rewards else [],
        _kl(policies, sampler, candidate, read, [responses[pick] for pick in picks]),
        [kept[pick].tokens for pick in picks],
        [kept[pick].ended for pick in picks],
        costs,
        agreement,
    )


def _kept(
    candidate: Candidate, ids: Sequence[int], text: str, tokenizer: PreTrainedTokenizerBase, chat: bool
) -> Kept:
    """What counts of the response `text` of the tokens `ids`."""
    ended = ids[-1] == tokenizer.eos_token_id
    if candidate.reasons:
        text, closed = final_answer(text)
    elif candidate.in_context and not chat:
        text, closed = first_part(text)
    else:
        return Kept(text, len(ids), ended)
    ended = ended or closed
    return Kept(text, len(tokenizer(text, add_special_tokens=False)["input_ids"]) + ended, ended)


def _rewards(
    data: Data,
    policies: LoadedPolicies,
    candidate: Candidate,
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    kept: Sequence[Kept],
) -> list[float]:
    """The reward model's score of each answer: of its tokens, or of its text if the prompt held more."""
    if candidate.in_context:
        pairs = [
            (prompt.prompt, tokenize.continuation(prompt.prompt, one.text, data))
            for prompt, one in zip(prompts, kept, strict=True)
        ]
        return reward_scores(policies, pairs, data, [one.ended for one in kept])
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
