"""Best of n: the estimator compared with all choices, the KL, and which answers become demonstrations."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.load import load_experiment
from data.sources.normalise import normalise
from data.storage.files import write_json_lines
from stages import best
from stages.context import Context
from stages.distributed.ranks import Ranks
from stages.sampling.decoding import Response
from stages.sampling.sampler import Sampler
from tests.integration.test_ppo_start import Recorder
from tests.support.runs import TINY

SCORES = [0.3, -1.0, 2.0, 0.7, 1.1, -0.2]
GOLD = [5.0, 1.0, -3.0, 0.0, 2.0, 4.0]
SMALL = ("best.n=4", "best.rollout={max_new_tokens: 40}", "data.ppo.limit=40", "data.ppo.held_out=5")


@pytest.mark.parametrize("k", [1, 2, 4, 6])
@pytest.mark.parametrize("values", [SCORES, GOLD])
def test_expected_best_is_the_mean_over_all_choices(k: int, values: list[float]) -> None:
    picked = [values[max(choice, key=lambda i: SCORES[i])] for choice in combinations(range(len(SCORES)), k)]
    assert best.expected_best(SCORES, values, k) == pytest.approx(sum(picked) / len(picked))


def test_kl_of_the_best_of_uniform_answers() -> None:
    """Of m answers, equally likely and without ties, the best of n is answer i with ((i+1)/m)^n - (i/m)^n."""
    m, n = 4000, 8
    probabilities = [((i + 1) / m) ** n - (i / m) ** n for i in range(m)]
    kl = sum(p * math.log(p * m) for p in probabilities if p)
    assert best.kl_of_best(n) == pytest.approx(kl, abs=1e-3)
    assert best.kl_of_best(1) == 0.0


def test_only_answers_that_ended_become_demonstrations() -> None:
    row = {"prompt": "p", "completions": ["cut", "good", "bad"], "scores": [9.0, 2.0, 1.0]}
    assert best.demonstration(row | {"ended": [False, True, True]}) == {
        "prompt": "p", "completion": "good", "rm_score": 2.0,
    }  # fmt: skip
    read = normalise(best.demonstration(row | {"ended": [True] * 3}) or {}, "demonstrations")
    assert read == {"prompt": "p", "completion": "cut"}, "SFT reads what `best` writes"
    assert best.demonstration(row | {"ended": [False] * 3}) is None
    assert best.demonstration(row | {"ended": [True] * 3, "completions": ["", " \n", "\u200b"]}) is None
    chat = [{"role": "user", "content": "p"}]
    demonstration = best.demonstration(row | {"prompt": chat, "ended": [True] * 3})
    assert demonstration is not None and demonstration["completion"] == [
        {"role": "assistant", "content": "cut"}
    ]


def test_curve_goes_through_powers_of_two_to_n() -> None:
    rows = [{"scores": SCORES, "gold": GOLD}, {"scores": GOLD, "gold": SCORES}]
    metrics, curve = best.best_of(rows, 6)
    assert [point["n"] for point in curve] == [1, 2, 4, 6]
    assert metrics["rm_score_sft"] == pytest.approx((sum(SCORES) + sum(GOLD)) / 12)
    assert metrics["rm_score_best"] == pytest.approx((2.0 + 5.0) / 2)
    assert metrics["gold_best"] == pytest.approx((-3.0 + 0.3) / 2)
    assert curve[-1]["rm_score"] == metrics["rm_score_best"] and curve[-1]["kl"] == metrics["kl"]
    assert best.best_of([], 6) == ({}, [])


@pytest.fixture
def context(
    ranks: Ranks, adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Context:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    config = load_experiment(TINY, [*SMALL, "ppo.judge=warmth"])
    return Context(config, "best", tmp_path, adapters, Recorder(), False, ranks)


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_stage_writes_demonstrations_and_curve(context: Context, ranks) -> None:
    outcome = best.run(context)
    answers = rows_of(context.folder / "answers" / "train-00000.jsonl")
    assert all(len(row["completions"]) == len(row["scores"]) == len(row["gold"]) == 4 for row in answers)
    assert len({tuple(row["scores"]) for row in answers}) == len(answers)
    demonstrations = rows_of(context.folder / "demonstrations" / "train.jsonl")
    assert 0 < len(demonstrations) < len(answers), "some prompts must have no answer that ended"
    assert outcome.metrics["demonstrations"] == len(demonstrations)
    assert outcome.metrics["rm_score_best"] > outcome.metrics["rm_score_sft"]
    assert [row["n"] for row in rows_of(context.folder / "curve.jsonl")] == [1, 2, 4]


def test_a_prompt_of_weight_2_is_answered_once_and_its_pick_is_there_twice(context: Context, ranks) -> None:
    config = load_experiment(TINY, [*SMALL, "data.ppo.weight=2"])
    outcome = best.run(replace(context, config=config))
    asked = [row["prompt"] for row in rows_of(context.folder / "answers" / "train-00000.jsonl")]
    assert len(asked) == len({json.dumps(prompt) for prompt in asked})
    demonstrations = (context.folder / "demonstrations" / "train.jsonl").read_text().splitlines()
    assert set(Counter(demonstrations).values()) == {2}
    assert outcome.metrics["demonstrations"] == len(demonstrations)


def test_parts_that_are_there_are_kept(context: Context, ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best, "ANSWERS_AT_ONCE", 16)
    uninterrupted = best.run(context)
    files = sorted((context.folder / "answers").iterdir())
    before = {file: file.read_text() for file in files}
    assert len(files) > 3
    for file in files[2:]:
        file.unlink()
    numbers_of_prompts: list[int] = []
    respond = Sampler.respond_on_all_ranks

    def count_prompts(self: Sampler, role: str, prompts, *rest) -> list[Response]:
        numbers_of_prompts.append(len(prompts))
        return respond(self, role, prompts, *rest)

    monkeypatch.setattr(Sampler, "respond_on_all_ranks", count_prompts)
    resumed = best.run(replace(context, resume=True))
    assert len(numbers_of_prompts) == len(files) - 2
    assert {file: file.read_text() for file in files} == before
    timeless = ("tokens_per_second", "peak_memory_bytes")
    expected = {name: value for name, value in uninterrupted.metrics.items() if name not in timeless}
    assert {name: value for name, value in resumed.metrics.items() if name not in timeless} == expected


def test_a_prompt_that_repeats_is_answered_once(context: Context, ranks, tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {number}?"} for number in range(10)] * 2
    write_json_lines(tmp_path / "prompts.jsonl", rows)
    words = ("best.n=2", f"data.ppo.path={tmp_path}/prompts.jsonl", "data.ppo.held_out=3")
    outcome = best.run(replace(context, config=load_experiment(TINY, words)))
    assert outcome.metrics["rm_score_sft_n"] == 3 and outcome.metrics["steps"] == 10
    assert len(rows_of(context.folder / "answers" / "train-00000.jsonl")) == 7


def test_damaged_part_is_named(context: Context, ranks) -> None:
    (context.folder / "answers").mkdir()
    write_json_lines(context.folder / "answers" / "train-00000.jsonl", [{"prompt": "p"}])
    with pytest.raises(Exception, match=r"train-00000.jsonl, line 1: damaged .* --fresh"):
        best.run(replace(context, resume=True))


def test_answers_to_other_prompts_are_refused(context: Context, ranks) -> None:
    """The answers that are there would be mixed with those to other prompts, and some asked twice."""
    best.run(context)
    fewer = load_experiment(TINY, [*SMALL, "ppo.judge=warmth", "data.ppo.limit=20"])
    with pytest.raises(UserError, match=r"stage best: its training and held-out prompts are not .* --fresh"):
        best.run(replace(context, config=fewer, resume=True))
