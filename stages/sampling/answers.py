"""Several answers of a policy to each prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from configs.schema import Data
from data.batches import tokenize
from data.batches.sampler import seed_from
from stages.sampling.sampler import Sampler


class Sampled(NamedTuple):
    """Answers of a policy to one prompt.

    Attributes:
        texts: as people read them.
        completions: as they stand after the prompt.
        ids: the tokens that were sampled.
    """

    prompt: tokenize.Prompt
    texts: list[str]
    completions: list[str]
    ids: list[list[int]]


def sample_answers(
    data: Data,
    sampler: Sampler,
    role: str,
    prompts: Sequence[tokenize.Prompt],
    number: int,
    noise: tuple[int, str],
    advance: Callable[[int], None] = lambda _: None,
) -> list[Sampled]:
    """Sample `number` answers of `role` to each prompt. Every rank must call.

    Args:
        noise: seed and purpose. The noise of an answer depends on them, on its number, and on the prompt.
    """
    ids = [prompt.prompt_ids for prompt in prompts for _ in range(number)]
    seeds = [seed_from(*noise, i % number, prompt) for i, prompt in enumerate(ids)]
    sampled = [response.ids for response in sampler.respond_on_all_ranks(role, ids, seeds, advance)]
    return with_texts(data, sampler, prompts, [sampled[i : i + number] for i in range(0, len(ids), number)])


def with_texts(
    data: Data, sampler: Sampler, prompts: Sequence[tokenize.Prompt], ids: Sequence[list[list[int]]]
) -> list[Sampled]:
    """The answers to each prompt by the tokens that were sampled."""
    texts = iter(sampler.decode([answer for answers in ids for answer in answers]))
    sampled = []
    for prompt, answers in zip(prompts, ids, strict=True):
        own = [next(texts) for _ in answers]
        completions = [tokenize.continuation(prompt.prompt, text, data) for text in own]
        sampled.append(Sampled(prompt, own, completions, answers))
    return sampled
