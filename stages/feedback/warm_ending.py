"""The demo's labeller: does an answer end a scene warmly, in plain English, about what the scene is about?

It stands in for a person, and is harder to please than sentiment alone. A fixed language model, the
unquantized SmolLM2-135M-Instruct, reads every answer. PPO sees neither the model nor the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

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
BATCH = 64  # answers in one forward


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
    rows = [
        (tokenizer(prompt).input_ids or [tokenizer.eos_token_id], tokenizer(f" {answer.strip()}").input_ids)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    order = sorted(range(len(rows)), key=lambda row: sum(map(len, rows[row])))  # so that little is padding
    nats = [NO_TEXT] * len(rows)
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        for row, value in zip(batch, _nats(model, [rows[row] for row in batch]), strict=True):
            if answers[row].strip():
                nats[row] = value
    return nats


@torch.no_grad()
def _nats(model: PreTrainedModel, rows: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    """Nats per token of the second part of each row after the first."""
    ids = pad_sequence([torch.tensor(first + second) for first, second in rows], batch_first=True)
    hidden = model.base_model(ids).last_hidden_state  # causal: padding on the right changes nothing
    values = []
    for (first, second), row in zip(rows, hidden, strict=True):
        logits = model.get_output_embeddings()(row[len(first) - 1 : len(first) + len(second) - 1])
        values.append(float(cross_entropy(logits, torch.tensor(second))))
    return values


@cache
def _reader() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    folder = embedded_model(READER)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)
