"""Automatic prompts (APE, Zhou et al. 2022): the base proposes instructions, the likeliest one is used.

The base reads some demonstrations and completes "The instruction was to". Each proposal is scored by the
likelihood of other demonstrations after it (section 3.3, log probability). The best one stands in front of
every prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

from apps.evaluate.prompts import Row
from apps.likelihood import token_logprobs
from apps.trained_run import BASE, LoadedPolicies, this_process
from configs.errors import UserError
from configs.schema import Data, Rollout
from data.batches import tokenize
from data.batches.sampler import seed_from
from data.sources.messages import Message, last_text
from stages.sampling.sampler import open_sampler

SHOWN = 5  # demonstrations that the base reads
SCORED = 16  # other demonstrations, on which proposals are scored
AT_ONCE = 8
LETTERS = 300  # of an instruction


@dataclass(frozen=True)
class Instruction:
    """A proposal.

    Attributes:
        text: what stands in front of a prompt.
        logprob: mean log-probability of a token of the scored demonstrations after it, in nats.
    """

    text: str
    logprob: float


def propose(
    policies: LoadedPolicies,
    demonstrations: Sequence[Row],
    data: Data,
    rollout: Rollout,
    number: int,
    seed: int,
) -> list[Instruction]:
    """Different ones among `number` proposals of the base, and the empty instruction; the best first.

    Raises:
        UserError: there are too few demonstrations.
    """
    shown, scored = demonstrations[:SHOWN], demonstrations[SHOWN : SHOWN + SCORED]
    if not scored:
        raise UserError(
            f"--instructions: data.sft has {len(demonstrations)} demonstrations to train on. It needs "
            f"more than {SHOWN}."
        )
    texts = dict.fromkeys(["", *_sampled(policies, shown, rollout, number, seed)])
    found = [Instruction(text, _logprob(policies, text, scored, data)) for text in texts]
    return sorted(found, key=lambda one: -one.logprob)


def instructed(prompt: str | list[Message], instruction: str) -> str | list[Message]:
    """A prompt after an instruction. In a conversation, the instruction opens the last message."""
    if not instruction:
        return prompt
    if isinstance(prompt, str):
        return f"{instruction}\n\n{prompt}"
    return [*prompt[:-1], {**prompt[-1], "content": f"{instruction}\n\n{prompt[-1]['content']}"}]


def _sampled(
    policies: LoadedPolicies, shown: Sequence[Row], rollout: Rollout, number: int, seed: int
) -> list[str]:
    """The first sentence of each proposal."""
    examples = "\n\n".join(
        f"Input: {last_text(row['prompt'])}\nOutput: {last_text(row['completion']).strip()}" for row in shown
    )
    question = (
        f"I gave a friend an instruction. They wrote these outputs to these inputs.\n\n{examples}\n\n"
        "The instruction was to"
    )
    ids: list[int] = policies.tokenizer(question)["input_ids"]
    settings = rollout.model_copy(update={"max_new_tokens": 40})
    with open_sampler(policies.base, policies.tokenizer, this_process(), settings) as sampler:
        seeds = [seed_from(seed, "instruction", proposal, ids) for proposal in range(number)]
        responses = sampler.respond(BASE, [ids] * number, seeds)
        texts = sampler.decode([response.ids for response in responses])
    firsts = [text.split("\n")[0].split(". ")[0].strip(" .")[:LETTERS] for text in texts]
    return [f"{first[0].upper()}{first[1:]}." for first in firsts if first]


def _logprob(policies: LoadedPolicies, instruction: str, scored: Sequence[Row], data: Data) -> float:
    """Mean log-probability of a token of the demonstrations' answers after the instruction."""
    wide = data.model_copy(update={"max_prompt_length": 10**6, "max_length": 2 * 10**6})
    rows = [
        tokenize.answer(
            instructed(row["prompt"], instruction),
            last_text(row["completion"]),
            True,
            policies.tokenizer,
            wide,
        )
        for row in scored
    ]
    pad, device = policies.tokenizer.pad_token_id, policies.base.causal.device
    return fmean(chain.from_iterable(token_logprobs(policies.models, BASE, rows, pad, device, AT_ONCE)))
