"""Demonstrations in front of a prompt: what the base does without training (Brown et al. 2020)."""

from __future__ import annotations

import random
from collections.abc import Sequence

from sklearn.feature_extraction.text import TfidfVectorizer
from transformers import PreTrainedTokenizerBase

from apps.evaluate.candidates import Candidate
from apps.evaluate.instructions import instructed
from apps.evaluate.prompts import Row, fitting
from apps.evaluate.reasoning import before_reasoning
from configs.errors import UserError
from configs.schema import Data
from data.batches.tokenize import Prompt, is_chat
from data.sources.messages import Message, Text, as_messages, last_text

BREAK = "\n\n"  # between demonstrations of plain text; an answer ends there


def in_context(
    candidate: Candidate,
    prompts: Sequence[Prompt],
    demonstrations: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    data: Data,
    context: int,
    seed: int,
) -> list[Prompt]:
    """The prompts as the candidate reads them, with its instruction, demonstrations and call to reason.

    Args:
        context: the most tokens of a prompt.

    Raises:
        UserError: there are not so many demonstrations, or a prompt does not fit into the context.
    """
    if not candidate.in_context:
        return list(prompts)
    if candidate.shots > len(demonstrations):
        raise UserError(
            f"--policies: {candidate.name}: data.sft has {len(demonstrations)} demonstrations to train on."
        )
    chat = is_chat(prompts[0].prompt, data)
    asked = [
        before_reasoning(prompt.prompt, chat) if candidate.reasons else prompt.prompt for prompt in prompts
    ]
    if candidate.instruction:
        asked = [instructed(prompt, candidate.instruction) for prompt in asked]
    if candidate.shots:
        chosen = _choose(candidate, prompts, demonstrations, seed)
        asked = [_joined(prompt, some, data) for prompt, some in zip(asked, chosen, strict=True)]
    rows: list[Row] = [{"prompt": prompt} for prompt in asked]
    wide = data.model_copy(update={"max_prompt_length": context, "max_length": context + 1})
    extended = fitting(rows, tokenizer, wide)
    if len(extended) < len(prompts):
        raise UserError(
            f"--policies: {candidate.name}: {len(prompts) - len(extended)} prompts with what stands before "
            f"or after them exceed the context of the base, {context} tokens. Take fewer demonstrations, or "
            "shorter prompts."
        )
    return extended


def first_part(text: str) -> tuple[str, bool]:
    """The answer in a continuation of plain text, and whether it ends there.

    The base may go on with a next demonstration.
    """
    answer, after, _ = text.partition(BREAK)
    return answer.strip(), bool(after)


def _choose(
    candidate: Candidate, prompts: Sequence[Prompt], demonstrations: Sequence[Row], seed: int
) -> list[list[Row]]:
    """The demonstrations of each prompt. Random ones are the same for all prompts."""
    if candidate.choice == "nearest":
        texts = [last_text(row["prompt"]) for row in demonstrations]
        # Parts of words: they are there in arithmetic and in scripts without blanks, too.
        vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 3)).fit(texts)
        likeness = vectors.transform([prompt.text for prompt in prompts]) @ vectors.transform(texts).T
        order = likeness.toarray().argsort(axis=1, kind="stable")[:, -candidate.shots :]  # nearest last
        return [[demonstrations[i] for i in row] for row in order]
    drawn = random.Random(seed).sample(list(demonstrations), candidate.shots)
    if candidate.choice.startswith("order"):
        random.Random(f"{seed} {candidate.choice}").shuffle(drawn)
    if candidate.choice == "shuffled":
        answers = [row["completion"] for row in drawn]
        drawn = [
            row | {"completion": answer}
            for row, answer in zip(drawn, [*answers[1:], *answers[:1]], strict=True)
        ]
    return [drawn] * len(prompts)


def _joined(prompt: Text, demonstrations: Sequence[Row], data: Data) -> Text:
    """One text, or one conversation, of demonstrations and prompt."""
    if not is_chat(prompt, data):
        parts = [f"{row['prompt']}{last_text(row['completion'])}" for row in demonstrations]
        return BREAK.join([*parts, str(prompt)])
    asked = as_messages(prompt, "user")
    system = [message for message in asked if message["role"] == "system"]  # a template takes it first
    turns: list[Message] = []
    for row in demonstrations:
        turns += [*as_messages(row["prompt"], "user"), *as_messages(row["completion"], "assistant")]
    return [*system, *(message for message in [*turns, *asked] if message["role"] != "system")]
