"""Automatic prompts: how an instruction enters a prompt, and which one is the best."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from apps.evaluate import instructions
from apps.evaluate.instructions import instructed, propose
from apps.trained_run import LoadedPolicies
from configs.errors import UserError
from configs.schema import Data, Rollout
from stages.models.role_models import RoleModels
from tests.support.roles import tiny_roles

ROWS = [{"prompt": f"Question {number}.", "completion": " Yes."} for number in range(8)]
SOURCE = {"path": "x.jsonl"}
DATA = Data.model_validate({"sft": SOURCE, "rm": SOURCE, "ppo": SOURCE})


@pytest.fixture
def policies(tiny_tokenizer) -> LoadedPolicies:
    return LoadedPolicies({"base": "base"}, RoleModels((tiny_roles(), tiny_tokenizer)), reward=False)


def test_an_instruction_opens_a_text_or_the_last_message() -> None:
    assert instructed("Hi.", "Be kind.") == "Be kind.\n\nHi."
    assert instructed("Hi.", "") == "Hi."
    turns: Any = [
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "C"},
    ]
    changed: Any = instructed(turns, "Be kind.")
    assert changed[-1]["content"] == "Be kind.\n\nC"
    assert changed[:-1] == turns[:-1]


def test_the_best_proposal_makes_other_demonstrations_likeliest(policies, monkeypatch) -> None:
    monkeypatch.setattr(instructions, "_sampled", lambda *_: ["Say no.", "Say yes.", "Say no."])
    found = propose(policies, ROWS, DATA, Rollout(max_new_tokens=4), 3, seed=0)
    assert {one.text for one in found} == {"", "Say no.", "Say yes."}
    assert [one.logprob for one in found] == sorted((one.logprob for one in found), reverse=True)


def test_the_likelihood_is_that_of_the_model_by_itself(policies, tiny_tokenizer) -> None:
    """Against transformers' own loss, one text at a time."""
    actual = instructions._logprob(policies, "Say yes.", ROWS[:2], DATA)
    total = count = 0.0
    for row in ROWS[:2]:
        prompt = tiny_tokenizer(f"Say yes.\n\n{row['prompt']}")["input_ids"]
        answer = [*tiny_tokenizer(row["completion"])["input_ids"], tiny_tokenizer.eos_token_id]
        labels = torch.tensor([[-100] * len(prompt) + answer])
        with torch.no_grad():
            loss = policies.base.causal(torch.tensor([prompt + answer]), labels=labels).loss
        total, count = total - float(loss) * len(answer), count + len(answer)
    assert actual == pytest.approx(total / count, rel=1e-4)


def test_proposals_are_sentences(policies) -> None:
    found = propose(policies, ROWS, DATA, Rollout(max_new_tokens=4), 4, seed=0)
    assert all(one.text == "" or one.text.endswith(".") for one in found)


def test_too_few_demonstrations_are_refused(policies) -> None:
    with pytest.raises(UserError, match="more than 5"):
        propose(policies, ROWS[:5], DATA, Rollout(max_new_tokens=4), 4, seed=0)
