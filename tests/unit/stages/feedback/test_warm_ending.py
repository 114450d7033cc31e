"""The demo's labeller: which endings it prefers, and its reader's likelihoods, computed apart."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.feedback.warm_ending import READER, is_one_sentence, judge_endings, nats_per_token
from stages.models.demo_models import embedded_model

SCENE = "Tom burnt the cake for his sister's birthday. When she saw it, she"


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("cut off the black edges.", True),
        ('said, "It is fine."', True),
        ("laughed!", True),
        ("cut off the black", False),  # cut by the limit of tokens
        ("cut it. Then she ate it.", False),
        ("asked who? Nobody knew.", False),
        ("paid 3.50 for it.", True),
        ("", False),
    ],
)
def test_one_sentence_by_hand(text: str, whole: bool) -> None:
    assert is_one_sentence(text) is whole


@pytest.mark.smollm2
def test_warm_plain_english_on_the_subject_is_preferred() -> None:
    warm, plain, *bad = (
        "laughed and gave him a hug.",
        "cut off the black edges with a knife.",
        "bird happy lovely great the of joy sweet.",  # warm words, no English
        "love love love love love.",
        "was happy to win the national election for senator again.",  # of another subject
        "laughed and gave him a hug and then she",  # cut
        "shouted at him and broke the plate.",
        "enjoyed a wonderful day together with beautiful, delicious treats.",  # more warmth, less else
        "",
    )
    scores = [judgement.score for judgement in judge_endings([SCENE] * 9, [warm, plain, *bad])]
    assert scores[0] == max(scores)
    assert all(score < scores[0] - 0.3 for score in scores[2:])


@pytest.mark.smollm2
def test_the_reader_s_likelihood_is_that_of_the_model_by_itself() -> None:
    """One text at a time, with the loss of transformers."""
    answers = ["laughed and gave him a hug.", "cut it"]
    folder = embedded_model(READER)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = []
    for answer in answers:
        prompt, ids = tokenizer(SCENE).input_ids, tokenizer(f" {answer}").input_ids
        labels = torch.tensor([[-100] * len(prompt) + ids])
        with torch.no_grad():
            expected.append(float(model(torch.tensor([prompt + ids]), labels=labels).loss))
    assert nats_per_token([SCENE] * 2, answers) == pytest.approx(expected, rel=1e-4)


@pytest.mark.smollm2
def test_an_answer_s_judgement_does_not_depend_on_its_neighbours() -> None:
    answers = ["laughed and gave him a hug.", "", "read the paper for an hour and then two more hours."]
    together = judge_endings([SCENE] * 3, answers)
    alone = [judge_endings([SCENE], [answer])[0] for answer in answers]
    assert [j.score for j in together] == pytest.approx([j.score for j in alone], abs=1e-4)
    assert set(together[0].parts) == {"warmth", "nats", "related", "repetition", "unfinished", "brief"}
