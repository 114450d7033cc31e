"""The demo's labeller: does an answer end a scene warmly, in plain English, about what the scene is about?

It stands in for a person, and is harder to please than sentiment alone. A fixed language model, the
unquantized SmolLM2-135M-Instruct, reads every answer. PPO sees neither the model nor the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from data.batches import collate
from stages.feedback.judgements import Judgement
from stages.feedback.sentiment import sentiment
from stages.maths.statistics import repeated_bigrams
from stages.models.demo_models import embedded_model

READER = "smollm2-135m-instruct"
WARM = 0.5  # of sentiment: one warm word is enough, and more of them earn nothing
PLAIN = 3.1  # nats per token: plain English is below
RELATED = 1.0  # nats per token that the scene explains of an answer to it
UNFINISHED = 0.5
WORDS = 4  # of an ending that says something; "was happy." does not
BRIEF = 0.25
REPETITION = 3.0
NO_TEXT = 20.0  # nats per token of an empty answer
AFTER_ONE = 8  # answers to one prompt in one row
BATCH = 16  # rows in one forward


def judge_endings(prompts: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
    """Score each answer: its warmth, less what is wrong with it.

    Parts of a score:

    - `warmth`, sentiment in [-1, 1] (VADER's compound score). It counts up to `WARM`.
    - `nats`, nats per token of the answer after its prompt, for the reader. The part above `PLAIN` counts
      against it.
    - `related`, nats per token by which the scene makes the answer likelier: after the whole prompt, instead
      of after its last word alone. What lacks to `RELATED` counts against it.
    - `repetition`, the share of repeated pairs of words, `REPETITION` times.
    - `unfinished`, 1 unless the answer is one sentence with an end; it costs `UNFINISHED`.
    - `brief`, 1 if the answer has fewer than `WORDS` words; it costs `BRIEF`.
    """
    after_prompt = nats_per_token(prompts, answers)
    after_word = nats_per_token([prompt.split()[-1] if prompt.split() else "" for prompt in prompts], answers)
    return [_judgement(*row) for row in zip(answers, after_prompt, after_word, strict=True)]


def _judgement(answer: str, nats: float, nats_alone: float) -> Judgement:
    parts = {
        "warmth": sentiment(answer),
        "nats": nats,
        "related": nats_alone - nats,
        "repetition": repeated_bigrams(answer),
        "unfinished": 0.0 if is_one_sentence(answer) else 1.0,
        "brief": 1.0 if len(answer.split()) < WORDS else 0.0,
    }
    faults = max(0.0, nats - PLAIN) + max(0.0, RELATED - parts["related"])
    faults += REPETITION * parts["repetition"] + UNFINISHED * parts["unfinished"] + BRIEF * parts["brief"]
    return Judgement(min(parts["warmth"], WARM) - faults, parts)


def is_one_sentence(text: str) -> bool:
    """Whether the text has one end of a sentence, and it is at the end of the text."""
    stripped = text.rstrip("\"' ")
    return stripped.endswith((".", "!", "?")) and not any(
        mark in stripped[:-1] for mark in (". ", "! ", "? ")
    )


def nats_per_token(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """Mean of -log p of the tokens of each answer after its prompt, for the reader; `NO_TEXT` without any."""
    model, tokenizer = _reader()
    nats = [NO_TEXT] * len(answers)
    to_prompt: dict[str, list[int]] = {}
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        if answer.strip():
            to_prompt.setdefault(prompt, []).append(number)
    rows = []
    for prompt, numbers in to_prompt.items():
        prompt_ids = tokenizer(prompt).input_ids or [tokenizer.eos_token_id]
        ids = [tokenizer(f" {answers[number].strip()}").input_ids for number in numbers]
        cuts = range(0, len(ids), AFTER_ONE)
        rows += [(numbers[cut : cut + AFTER_ONE], prompt_ids, ids[cut : cut + AFTER_ONE]) for cut in cuts]
    rows.sort(key=lambda row: len(row[1]) + sum(map(len, row[2])))  # so that little is padding
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        values_of = _nats(model, [(prompt_ids, ids) for _, prompt_ids, ids in some])
        for (numbers, _, _), values in zip(some, values_of, strict=True):
            for number, value in zip(numbers, values, strict=True):
                nats[number] = value
    return nats


@torch.no_grad()
def _nats(model: PreTrainedModel, rows: Sequence[tuple[list[int], list[list[int]]]]) -> list[list[float]]:
    """Nats per token of each answer after its prompt. A prompt is read once for all of its answers."""
    batch = collate.rankings(rows, pad_id=0)
    hidden = model.base_model(batch.input_ids, batch.attention_mask, batch.position_ids).last_hidden_state
    values: list[list[float]] = []
    for (prompt, answers), states in zip(rows, hidden, strict=True):
        values.append([])
        start = len(prompt)
        for ids in answers:
            before = [len(prompt) - 1, *range(start, start + len(ids) - 1)]  # each token's, in the row
            logits = model.get_output_embeddings()(states[before])
            values[-1].append(float(cross_entropy(logits, torch.tensor(ids))))
            start += len(ids)
    return values


@cache
def _reader() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    folder = embedded_model(READER)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)
