"""The judgement: who wins, what is written beside it, and that a policy is at KL 0 from itself."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from configs.schema import Data, Experiment, Ppo, Reward, Rollout, Source
from data.batches.tokenize import Prompt
from stages.context import Context
from stages.distributed.ranks import Ranks
from stages.feedback import evaluation
from stages.feedback.evaluation import Answers, HeldOutEvaluation, answer
from stages.feedback.rewards import Rewards
from stages.maths.statistics import wins
from stages.sampling.decoding import Response
from stages.sampling.sampler import Sampler, open_sampler
from tests.support.roles import CPU, ppo_roles, reward_model_of, role_output

ALONE = Ranks(0, 1, CPU)
NOTHING: Any = None  # where nothing asks it
ROLLOUT = Rollout(max_new_tokens=6, batch_size=2)
REWARDS = Rewards([Reward()])
PROMPTS = [Prompt(text, text, ids) for text, ids in (("one", [5, 6, 7]), ("two", [8]), ("three", [9, 10]))]


def silent(ranks: Ranks = ALONE) -> Sampler:
    return Sampler(NOTHING, NOTHING, ranks, ROLLOUT, NOTHING)


class Silent:
    """A tracker that reports nowhere."""

    def phase(self, title: str, total: int, done: int = 0) -> None: ...
    def advance(self, units: int = 1, **figures: float) -> None: ...
    def log(self, metrics, step: int) -> None: ...
    def samples(self, rows, step: int) -> None: ...
    def note(self, message: str) -> None: ...
    def rewind(self, step: int) -> None: ...


def context_in(folder: Path, judge: str | None = "warmth") -> Context:
    source = Source(path="prompts.jsonl")
    config = Experiment(
        name="test",
        base={"model": "tiny-random"},
        data=Data(sft=source, rm=source, ppo=source),
        ppo=Ppo(rollout=ROLLOUT, micro_batch_size=2, judge=judge),
    )
    return Context(config, "ppo", folder, {}, Silent(), False, ALONE)


def answered(folder: Path, roles: Any, tokenizer: Any, role: str) -> Answers:
    reward_model = reward_model_of(roles, tokenizer, ALONE)
    with open_sampler(roles, tokenizer, ALONE, ROLLOUT) as sampler:
        return answer(context_in(folder), sampler, reward_model, REWARDS, role, PROMPTS)


@pytest.fixture(scope="module")
def roles(adapters):
    return ppo_roles(adapters)


def test_wins_by_hand():
    assert wins([1.0, 0.0, 2.0, -1.0], [0.5, 0.5, 2.0, -3.0]) == [1.0, 0.0, 0.5, 1.0]


def test_wins_of_the_two_sides_add_up_to_one():
    ours, theirs = [0.3, -0.2, 0.0, 5.0], [0.3, 0.2, -0.0, 4.0]
    pairs = zip(wins(ours, theirs), wins(theirs, ours), strict=True)
    assert [sum(pair) for pair in pairs] == [1.0] * 4
    assert wins(ours, ours) == [0.5] * 4


def test_wins_need_equally_many():
    with pytest.raises(ValueError):
        wins([1.0], [1.0, 2.0])


CANNED = {
    "base": Answers(["Bad.", "Fine.", "It rains."], {"rm": [0.0, 0.1, 0.2]}, [9.0, 9.0, 9.0], [2, 2, 3]),
    "reference": Answers(
        ["It rains.", "It rains.", "great"], {"rm": [0.0, 1.0, 2.0]}, [0.0, 0.0, 0.0], [3, 3, 1]
    ),
    "policy": Answers(["great", "fine", "Terrible."], {"rm": [3.0, 2.0, 1.0]}, [1.0, 2.0, 6.0], [1, 3, 2]),
}


@pytest.fixture
def canned(monkeypatch) -> list[str]:
    """Roles that give canned answers; the list is of who was asked."""
    asked: list[str] = []

    def give(context, sampler, reward_model, rewards, role: str, prompts: Sequence[Prompt]) -> Answers:
        asked.append(role)
        return CANNED[role]

    monkeypatch.setattr(evaluation, "answer", give)
    return asked


def test_final_judgement_by_hand(canned, tmp_path):
    metrics = HeldOutEvaluation(context_in(tmp_path), silent(), NOTHING, REWARDS, PROMPTS).compare_policies()
    assert sorted(canned) == ["base", "policy", "reference"]
    expected = {
        "rm_score_sft": 1.0,  # (0 + 1 + 2) / 3
        "rm_score_ppo": 2.0,  # (3 + 2 + 1) / 3
        "rm_win_rate": 2 / 3,  # won, won, lost
        "kl": 3.0,  # (1 + 2 + 6) / 3
        "mean_length": 2.0,  # (1 + 3 + 2) / 3
        "gold_base": (-0.5423 + 0.2023 + 0.0) / 3,  # VADER: bad -2.5, fine 0.8
        "gold_sft": 0.6249 / 3,  # great 3.1
        "gold_ppo": (0.6249 + 0.2023 - 0.4767) / 3,  # terrible -2.1
        "win_rate": 2 / 3,  # won, won, lost
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    assert set(metrics) == {f"{name}{end}" for name in expected for end in ("", "_low", "_high", "_n")}
    assert {metrics[f"{name}_n"] for name in expected} == {3}
    rows = [json.loads(line) for line in (tmp_path / "evaluation.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert rows[2] == {
        "prompt": "three",
        "base": "It rains.",
        "sft": "great",
        "ppo": "Terrible.",
        "score_base": 0.2,
        "score_sft": 2.0,
        "score_ppo": 1.0,
        "kl": 6.0,
        "gold_base": 0.0,
        "gold_sft": 0.6249,
        "gold_ppo": -0.4767,
    }


def test_a_judge_of_the_users_own_sees_prompts_and_answers(canned, tmp_path, monkeypatch):
    module = ModuleType("my_judge")
    vars(module)["judge"] = lambda prompts, completions: [
        float(prompt == "three" and answer == "Terrible.")
        for prompt, answer in zip(prompts, completions, strict=True)
    ]
    monkeypatch.setitem(sys.modules, "my_judge", module)
    evaluation = HeldOutEvaluation(
        context_in(tmp_path, judge="my_judge:judge"), silent(), NOTHING, REWARDS, PROMPTS
    )
    assert evaluation.evaluate_policy()["gold"] == pytest.approx(1 / 3)
    assert evaluation.compare_policies()["win_rate"] == pytest.approx(2 / 3)  # a tie, a tie, and won


def test_without_a_judge_there_is_no_gold(canned, tmp_path):
    metrics = HeldOutEvaluation(
        context_in(tmp_path, judge=None), silent(), NOTHING, REWARDS, PROMPTS
    ).compare_policies()
    assert "rm_win_rate" in metrics
    assert not [name for name in metrics if "gold" in name or name.startswith("win_rate")]
    assert "gold" not in (tmp_path / "evaluation.jsonl").read_text()
    assert (
        "gold"
        not in HeldOutEvaluation(
            context_in(tmp_path, judge=None), silent(), NOTHING, REWARDS, PROMPTS
        ).evaluate_policy()
    )


def test_held_out_figures_by_hand(canned, tmp_path):
    found = HeldOutEvaluation(context_in(tmp_path), silent(), NOTHING, REWARDS, PROMPTS).evaluate_policy()
    expected = {
        "score": 2.0,
        "kl": 3.0,
        "length": 2.0,
        "n": 3,
        "gold": (0.6249 + 0.2023 - 0.4767) / 3,
    }
    assert found == pytest.approx(expected, abs=1e-4)
    assert canned == ["policy"]


def test_final_judgement_takes_the_latest_answers_of_the_policy(canned, tmp_path):
    judge = HeldOutEvaluation(context_in(tmp_path), silent(), NOTHING, REWARDS, PROMPTS)
    judge.evaluate_policy()
    judge.evaluate_policy()
    metrics = judge.compare_policies()
    assert canned == ["policy", "policy", "base", "reference"]
    assert (
        metrics
        == HeldOutEvaluation(context_in(tmp_path), silent(), NOTHING, REWARDS, PROMPTS).compare_policies()
    )


def test_other_ranks_write_nothing(canned, tmp_path):
    HeldOutEvaluation(
        context_in(tmp_path, judge=None), silent(Ranks(1, 2, CPU)), NOTHING, REWARDS, PROMPTS
    ).compare_policies()
    assert not list(tmp_path.iterdir())


def test_nothing_held_out_is_no_judgement(canned, tmp_path):
    assert HeldOutEvaluation(context_in(tmp_path), silent(), NOTHING, REWARDS, []).compare_policies() == {}
    assert HeldOutEvaluation(context_in(tmp_path), silent(), NOTHING, REWARDS, []).evaluate_policy() == {}
    assert not list(tmp_path.iterdir())
    assert canned == []


def test_reference_is_at_kl_0_from_itself_and_others_are_not(roles, tiny_tokenizer, tmp_path):
    found = answered(tmp_path, roles, tiny_tokenizer, "reference")
    assert found.kl == [0.0, 0.0, 0.0]
    same = answered(tmp_path, roles, tiny_tokenizer, "policy")
    assert (same.texts, same.kl) == (found.texts, [0.0, 0.0, 0.0])  # the policy before its first update
    base = answered(tmp_path, roles, tiny_tokenizer, "base")
    assert all(kl != 0 and math.isfinite(kl) for kl in base.kl)
    assert base.texts != found.texts


def test_kl_and_scores_of_an_answer_equal_the_naive_ones(adapters, tiny_tokenizer, tmp_path, monkeypatch):
    roles = ppo_roles(adapters).eval()
    with torch.no_grad():
        for parameter in roles.role_parameters("policy").values():
            parameter.mul_(1.2)  # no longer its reference
    given = [[30, 31, 32, 2], [40], [50, 2]]
    monkeypatch.setattr(Sampler, "respond_on_all_ranks", lambda *_: [Response(ids) for ids in given])
    found = answered(tmp_path, roles, tiny_tokenizer, "policy")
    assert found.lengths == [4, 1, 2]
    for i, (prompt, response) in enumerate(zip(PROMPTS, given, strict=True)):
        ids = torch.tensor([prompt.prompt_ids + response])
        with torch.no_grad():
            steps = {
                role: role_output(roles, role, ids)[0, len(prompt.prompt_ids) - 1 : -1].log_softmax(-1)
                for role in ("policy", "reference")
            }
            score = role_output(roles, "reward", ids)[0, -1].item()
        kl = sum(float(steps["policy"][t, id] - steps["reference"][t, id]) for t, id in enumerate(response))
        assert found.kl[i] == pytest.approx(kl, abs=1e-4)
        assert abs(kl) > 1e-2
        assert found.terms["rm"][i] == pytest.approx(score, abs=1e-5)


def test_evaluation_does_not_depend_on_when_it_is_done(roles, tiny_tokenizer, tmp_path):
    first = answered(tmp_path, roles, tiny_tokenizer, "policy")
    torch.manual_seed(99)
    assert answered(tmp_path, roles, tiny_tokenizer, "policy") == first
