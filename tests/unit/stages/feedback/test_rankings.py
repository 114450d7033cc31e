"""Collected rankings: best first, with ties, and read back with any text in the answers."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.errors import UserError
from configs.schema import Rollout, Source
from data.batches.tokenize import Prompt
from data.batches.tokenize import rankings as tokenize_rankings
from data.sources.loading import load_rows
from stages.context import Context
from stages.distributed.ranks import Ranks
from stages.feedback import labellers, rankings
from stages.feedback.judgements import Judgement
from stages.feedback.rankings import read_collected_rankings
from stages.sampling.decoding import Response
from stages.sampling.sampler import Sampler
from tests.contract.bad_inputs.entry import check_message, flip
from tests.support.roles import CPU
from tests.unit.stages.feedback.test_evaluation import context_in

NOTHING: Any = None  # for unused arguments
SAMPLER = Sampler(NOTHING, NOTHING, Ranks(0, 1, CPU), Rollout(), NOTHING)


def resuming(folder) -> Context:
    return replace(context_in(folder), stage="rm", resume=True)


def row(split: str, answers: list[str], ranks: list[int]) -> dict:
    return {
        "split": split,
        "prompt": "p",
        "completions": answers,
        "ranks": ranks,
        "scores": [0.0] * len(ranks),
    }


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\r", "\n", "\x1c"])
def test_answers_may_hold_any_character(character, tmp_path):
    rows = [row("train", [f"a{character}b", "c"], [0, 1]), row("held_out", ["d", f"{character}e"], [0, 1])]
    rankings.write_sealed(tmp_path / "rankings.jsonl", rows)
    assert read_collected_rankings(resuming(tmp_path), record_samples=False) == ([rows[0]], [rows[1]])


def test_the_file_serves_as_data_of_another_run(tmp_path):
    """Also if an answer ended at once. Nothing of it is skipped but the tokens and the split."""
    rows = [
        {**row("train", ["a", ""], [0, 1]), "completion_ids": [[5, 2], [2]]},
        {**row("held_out", ["c", "b", "d"], [0, 1, 1]), "completion_ids": [[7, 2], [6, 2], [8, 2]]},
    ]
    rows[1]["prompt"] = [{"role": "user", "content": "q"}]
    rankings.write_sealed(tmp_path / "rankings.jsonl", rows)
    notes: list[str] = []
    source = Source(path=str(tmp_path / "rankings.jsonl"))
    first, second = load_rows(source, "rankings", notes.append).rows
    assert (first["prompt"], first["completions"], first["ranks"]) == ("p", ["a", ""], [0, 1])
    answers = [message["content"] for (message,) in second["completions"]]
    assert (second["prompt"], answers, second["ranks"]) == (rows[1]["prompt"], ["c", "b", "d"], [0, 1, 1])
    assert [" 2 rows have `split`, which is ignored: " in note for note in notes] == [True]


def test_rankings_of_ties_alone_are_left_out(tmp_path):
    useful, useless = row("train", ["a", "b"], [0, 1]), row("train", ["a", "a"], [0, 0])
    rankings.write_sealed(tmp_path / "rankings.jsonl", [useless, useful])
    assert read_collected_rankings(resuming(tmp_path), record_samples=False) == ([useful], [])


def test_an_attempt_without_a_checkpoint_records_samples_again(tmp_path, monkeypatch):
    """A kill between collection and first checkpoint loses the samples that the killed attempt recorded."""
    rows = [row("train", [f"a{number}", "b"], [0, 1]) for number in range(40)]
    rankings.write_sealed(tmp_path / "rankings.jsonl", rows)
    recorded = []
    context = resuming(tmp_path)
    monkeypatch.setattr(context.tracker, "samples", lambda samples, step: recorded.append((step, samples)))
    read_collected_rankings(context, record_samples=False)
    assert recorded == []
    read_collected_rankings(context, record_samples=True)
    assert recorded == [(0, [{name: row[name] for name in rankings.READABLE} for row in rows[::2]])]


@pytest.mark.parametrize("held_out", [[0, 0], [0, 1]])
def test_training_rankings_that_all_tie_are_an_error(held_out, tmp_path):
    rows = [row("train", ["a", "a"], [0, 0])] * 3 + [row("held_out", ["a", "b"], held_out)]
    rankings.write_sealed(tmp_path / "rankings.jsonl", rows)
    with pytest.raises(UserError) as caught:
        read_collected_rankings(resuming(tmp_path), record_samples=False)
    check_message(
        str(caught.value),
        f"{tmp_path}/rankings.jsonl: no training ranking prefers one answer to another",
        "Name another rm.rankings.labeller",
    )


def test_writing_leaves_nothing_else_behind(tmp_path):
    rankings.write_sealed(tmp_path / "rankings.jsonl", [row("train", ["é", "b"], [0, 1])])
    assert {path.name for path in tmp_path.iterdir()} == {"rankings.jsonl", "rankings.sha256"}
    assert json.loads((tmp_path / "rankings.jsonl").read_text(encoding="utf-8"))["completions"] == ["é", "b"]


def label_by(monkeypatch, score):
    """Let the labeller that the config names by default score an answer with `score`."""
    monkeypatch.setitem(
        labellers.LABELLERS, "file", lambda prompts, answers: [Judgement(score(text)) for text in answers]
    )


def test_samples_are_ranked_best_first_with_ties(tmp_path, monkeypatch):
    # K = 4 answers to each of two prompts, in the order in which they were sampled
    answers = ["It rains.", "great", "It rains.", "Terrible.", "fine", "bad", "great", "good"]
    monkeypatch.setattr(Sampler, "respond_on_all_ranks", lambda *_: [Response([i]) for i in range(8)])
    monkeypatch.setattr(Sampler, "decode", lambda _, responses: [answers[i] for (i,) in responses])
    label_by(
        monkeypatch,
        {
            "It rains.": 0.0,
            "great": 3.0,
            "Terrible.": -2.0,
            "fine": 1.0,
            "bad": -1.0,
            "good": 2.0,
        }.__getitem__,
    )
    prompts = [Prompt("one", "one", [5]), Prompt("two", "two", [6])]
    first, second = rankings._rank(resuming(tmp_path), SAMPLER, "sft", prompts)
    assert first == {
        "prompt": "one",
        "completions": [" great", " It rains.", " It rains.", " Terrible."],  # as they follow "one"
        "completion_ids": [[1], [2], [0], [3]],  # of those that tie, either may be first
        "ranks": [0, 1, 1, 2],
        "scores": [3.0, 0.0, 0.0, -2.0],
    }
    assert (second["completions"], second["ranks"]) == ([" great", " good", " fine", " bad"], [0, 1, 2, 3])


def test_samples_of_one_prompt_have_seeds_of_their_own(tmp_path, monkeypatch):
    sampled: list[tuple] = []

    def respond_on_all_ranks(sampler, role, prompts, seeds, advance):
        sampled.extend(zip(map(tuple, prompts), seeds, strict=True))
        return [Response([0])] * len(prompts)

    monkeypatch.setattr(Sampler, "respond_on_all_ranks", respond_on_all_ranks)
    monkeypatch.setattr(Sampler, "decode", lambda _, responses: ["a"] * len(responses))
    label_by(monkeypatch, lambda _: 0.0)
    one, two = Prompt("one", "one", [5]), Prompt("two", "two", [6])
    rankings._rank(resuming(tmp_path), SAMPLER, "sft", [one, two])
    assert len(set(sampled)) == 8
    sampled_together = sampled.copy()
    sampled.clear()
    rankings._rank(resuming(tmp_path), SAMPLER, "sft", [two])
    assert sampled == sampled_together[4:]  # whatever other prompts there are


def test_reward_model_learns_from_the_tokens_that_were_sampled(tmp_path, monkeypatch, tiny_tokenizer):
    """An answer that reached its limit has no end-of-turn token, and collecting it adds none."""
    end = tiny_tokenizer.eos_token_id
    sampled = [[40, 41, 42], [43, end], [44, 45, end], [46]]
    monkeypatch.setattr(Sampler, "respond_on_all_ranks", lambda *_: [Response(ids) for ids in sampled])
    sampler = Sampler(NOTHING, tiny_tokenizer, Ranks(0, 1, CPU), Rollout(), NOTHING)
    scores = {text: float(i) for i, text in enumerate(sampler.decode(sampled))}
    label_by(monkeypatch, scores.__getitem__)
    rows = rankings._rank(resuming(tmp_path), sampler, "sft", [Prompt("one", "one", [5])])
    (ranking,), _ = tokenize_rankings(rows, tiny_tokenizer, resuming(tmp_path).config.data)
    assert ranking.completion_ids == [[46], [44, 45, end], [43, end], [40, 41, 42]]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("rankings.jsonl", flip),
        ("rankings.jsonl", lambda file: os.truncate(file, 9)),
        ("rankings.sha256", flip),
        ("rankings.sha256", Path.unlink),
    ],
)
def test_rankings_that_are_not_those_collected_are_refused(name, damage, tmp_path):
    rankings.write_sealed(tmp_path / "rankings.jsonl", [row("train", ["a", "b"], [0, 1])])
    damage(tmp_path / name)
    with pytest.raises(UserError, match="rankings"):
        read_collected_rankings(resuming(tmp_path), record_samples=False)
